/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Makes inputs of the target `nvme` from the commands that a driver sends. It is linked into a
 * second `outboard`, where the linker brings the calls of the controller's own functions here:
 *
 *   OUTBOARD_RECORD=FOLDER outboard-record serve nvme SOCKET IMAGE
 *
 * It does not go into its sandbox: the inputs have to be written.
 */
#include "devices/nvme/nvme.h"
#include "disk.h"
#include "input.h"
#include "operations.h"
#include "tools/sandbox.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define INPUT_MAX     1900u
#define OPTIONS       0x34u /* three I/O queues, a second socket */
#define LIST_PAGE     100u
#define CONSUME_EVERY 4u

uint16_t __real_nvme_admin(struct nvme_cmd *cmd);
uint16_t __wrap_nvme_admin(struct nvme_cmd *cmd);
uint16_t __real_nvme_io(struct nvme_cmd *cmd);
uint16_t __wrap_nvme_io(struct nvme_cmd *cmd);

static FILE *out;
static long written;
static unsigned commands;

static void put(const void *data, size_t len)
{
    if (out)
        fwrite(data, 1, len, out);
    written += (long)len;
}

static void put_byte(uint8_t byte)
{
    put(&byte, 1);
}

static void put_number(uint64_t number)
{
    uint8_t bytes[9];

    put(bytes, input_put_number(bytes, number));
}

static void begin(void)
{
    static unsigned number;
    const char *folder = getenv("OUTBOARD_RECORD");
    char path[4096];

    if (out)
        fclose(out);
    out = NULL;
    written = 0;
    if (!folder)
        return;
    snprintf(path, sizeof(path), "%s/nvme-%d-%u", folder, (int)getpid(), number++);
    out = fopen(path, "w");
    put_byte(OPTIONS);
}

/* The driver's page as one of ours, with its offset. */
static uint64_t address_here(uint64_t address)
{
    uint64_t page = DISK_DATA + (address / NVME_PAGE) % 64, offset = address % NVME_PAGE;

    return offset ? page * NVME_PAGE + offset : page;
}

/* Bytes of data of a read or write; else 0. */
static uint32_t transfer_of(const struct nvme_cmd *cmd)
{
    bool moves =
        cmd->sq->id && (cmd->sqe.opcode == NVME_IO_READ || cmd->sqe.opcode == NVME_IO_WRITE ||
                        cmd->sqe.opcode == NVME_IO_COMPARE);

    return moves ? ((cmd->sqe.dw12 & 0xffff) + 1) << cmd->ctrl->cfg.lba_shift : 0;
}

static void put_command(const struct nvme_cmd *cmd)
{
    const struct nvme_sqe *sqe = &cmd->sqe;
    uint32_t pages = transfer_of(cmd) / NVME_PAGE;
    bool listed = pages > 2;

    if (listed) {
        pages = pages < 255 ? pages : 255;
        put_byte(NVME_LIST);
        put_byte(LIST_PAGE);
        put_number(0);
        put_byte((uint8_t)(pages - 1));
        for (uint32_t i = 1; i < pages; i++)
            put_number(DISK_DATA + i % 64);
    }
    put_byte(NVME_COMMAND);
    put_byte((uint8_t)(cmd->sq->id % 4));
    put_byte(sqe->opcode);
    put_byte(0xff & ~HAS_REST);
    put_number(sqe->nsid);
    put_number(address_here(sqe->prp1));
    put_number(listed ? LIST_PAGE : address_here(sqe->prp2));
    put_number(sqe->dw10);
    put_number(sqe->dw11);
    put_number(sqe->dw12);
    put_number(sqe->dw13);
}

static void record(const struct nvme_cmd *cmd)
{
    bool creates = cmd->sq->id == 0 &&
                   (cmd->sqe.opcode == NVME_ADM_CREATE_CQ || cmd->sqe.opcode == NVME_ADM_CREATE_SQ);

    if (!out || written > (long)INPUT_MAX)
        begin();
    if (creates) {
        put_byte(NVME_QUEUE);
        put_byte((uint8_t)(cmd->sqe.dw10 - 1));
        put_number(0);
    } else {
        put_command(cmd);
    }
    if (++commands % CONSUME_EVERY == 0) {
        put_byte(NVME_CONSUME);
        put_byte((uint8_t)(cmd->sq->id % 4));
    }
    if (out)
        fflush(out);
}

uint16_t __wrap_nvme_admin(struct nvme_cmd *cmd)
{
    record(cmd);
    return __real_nvme_admin(cmd);
}

uint16_t __wrap_nvme_io(struct nvme_cmd *cmd)
{
    record(cmd);
    return __real_nvme_io(cmd);
}

int __wrap_sandbox_landlock(const struct sandbox_needs *needs);
int __wrap_sandbox_seccomp(const struct sandbox_needs *needs);

int __wrap_sandbox_landlock(const struct sandbox_needs *needs)
{
    (void)needs;
    return 0;
}

int __wrap_sandbox_seccomp(const struct sandbox_needs *needs)
{
    (void)needs;
    return 0;
}
