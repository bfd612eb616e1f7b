/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * NVM Express 1.4, as far as this controller speaks it: registers, commands, status codes and the
 * layouts of what it transfers. Everything is little-endian, as are the machines we run on.
 */
#ifndef OB_NVME_SPEC_H
#define OB_NVME_SPEC_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the layouts below are used as they are: a little-endian machine is needed"
#endif

/* ---- Registers (section 3.1) --------------------------------------------------------------- */

enum nvme_reg {
    NVME_REG_CAP = 0x00,
    NVME_REG_VS = 0x08,
    NVME_REG_INTMS = 0x0c,
    NVME_REG_INTMC = 0x10,
    NVME_REG_CC = 0x14,
    NVME_REG_CSTS = 0x1c,
    NVME_REG_AQA = 0x24,
    NVME_REG_ASQ = 0x28,
    NVME_REG_ACQ = 0x30,
};

#define NVME_VS                  0x00010400u
#define NVME_CC_EN               0x1u
#define NVME_CC_FIXED            0x3ff0u /* CSS, MPS, AMS: not while EN is set */
#define NVME_CC_CSS(cc)          ((cc) >> 4 & 0x7u)
#define NVME_CC_MPS(cc)          ((cc) >> 7 & 0xfu)
#define NVME_CC_AMS(cc)          ((cc) >> 11 & 0x7u)
#define NVME_CC_SHN(cc)          ((cc) >> 14 & 0x3u)
#define NVME_CC_IOSQES(cc)       ((cc) >> 16 & 0xfu)
#define NVME_CC_IOCQES(cc)       ((cc) >> 20 & 0xfu)
#define NVME_CSTS_RDY            0x1u
#define NVME_CSTS_CFS            0x2u
#define NVME_CSTS_SHST_MASK      0xcu
#define NVME_CSTS_SHST_OCCURRING 0x4u
#define NVME_CSTS_SHST_COMPLETE  0x8u

#define NVME_PAGE     4096u
#define NVME_SQE_SIZE 64u
#define NVME_CQE_SIZE 16u

/* ---- Queue entries (section 4) ------------------------------------------------------------- */

struct nvme_sqe {
    uint8_t opcode;
    uint8_t flags; /* FUSE 1:0, PSDT 7:6 */
    uint16_t cid;
    uint32_t nsid;
    uint32_t dw2, dw3;
    uint64_t mptr;
    uint64_t prp1, prp2;
    uint32_t dw10, dw11, dw12, dw13, dw14, dw15;
};
static_assert(sizeof(struct nvme_sqe) == NVME_SQE_SIZE, "submission queue entry");

struct nvme_cqe {
    uint32_t result;
    uint32_t reserved;
    uint16_t sq_head;
    uint16_t sq_id;
    uint16_t cid;
    uint16_t status; /* phase in bit 0 */
};
static_assert(sizeof(struct nvme_cqe) == NVME_CQE_SIZE, "completion queue entry");

enum nvme_admin_opcode {
    NVME_ADM_DELETE_SQ = 0x00,
    NVME_ADM_CREATE_SQ = 0x01,
    NVME_ADM_GET_LOG_PAGE = 0x02,
    NVME_ADM_DELETE_CQ = 0x04,
    NVME_ADM_CREATE_CQ = 0x05,
    NVME_ADM_IDENTIFY = 0x06,
    NVME_ADM_ABORT = 0x08,
    NVME_ADM_SET_FEATURES = 0x09,
    NVME_ADM_GET_FEATURES = 0x0a,
    NVME_ADM_ASYNC_EVENT = 0x0c,
    NVME_ADM_DBBUF_CONFIG = 0x7c,
};

enum nvme_io_opcode {
    NVME_IO_FLUSH = 0x00,
    NVME_IO_WRITE = 0x01,
    NVME_IO_READ = 0x02,
    NVME_IO_COMPARE = 0x05,
    NVME_IO_WRITE_ZEROES = 0x08,
    NVME_IO_DSM = 0x09,
};

/* Read, Write, Compare, Write Zeroes: dword 12 */
#define NVME_IO_DEAC        (1u << 25)
#define NVME_IO_FUA         (1u << 30)
/* Dataset Management */
#define NVME_DSM_DEALLOCATE 0x4u

struct nvme_dsm_range {
    uint32_t attributes;
    uint32_t blocks;
    uint64_t slba;
};
static_assert(sizeof(struct nvme_dsm_range) == 16, "deallocation range");

/* ---- Status (section 4.6.1): type in bits 10:8, code in 7:0, do-not-retry in 14 ------------ */

#define NVME_DNR 0x4000u

enum nvme_status {
    NVME_OK = 0,
    NVME_INVALID_OPCODE = 0x001 | NVME_DNR,
    NVME_INVALID_FIELD = 0x002 | NVME_DNR,
    NVME_DATA_TRANSFER_ERROR = 0x004,
    NVME_INTERNAL_ERROR = 0x006,
    NVME_ABORT_REQUESTED = 0x007,
    NVME_INVALID_NS = 0x00b | NVME_DNR,
    NVME_COMMAND_SEQUENCE_ERROR = 0x00c | NVME_DNR,
    NVME_PRP_OFFSET_INVALID = 0x013 | NVME_DNR,
    NVME_LBA_OUT_OF_RANGE = 0x080 | NVME_DNR,
    NVME_CAPACITY_EXCEEDED = 0x081 | NVME_DNR,
    NVME_CQ_INVALID = 0x100 | NVME_DNR,
    NVME_INVALID_QID = 0x101 | NVME_DNR,
    NVME_INVALID_QUEUE_SIZE = 0x102 | NVME_DNR,
    NVME_AER_LIMIT_EXCEEDED = 0x105 | NVME_DNR,
    NVME_INVALID_VECTOR = 0x108 | NVME_DNR,
    NVME_INVALID_LOG_PAGE = 0x109 | NVME_DNR,
    NVME_INVALID_QUEUE_DELETION = 0x10c | NVME_DNR,
    NVME_NOT_SAVEABLE = 0x10d | NVME_DNR,
    NVME_NOT_NS_SPECIFIC = 0x10f | NVME_DNR,
    NVME_READ_ONLY_RANGE = 0x182 | NVME_DNR,
    NVME_WRITE_FAULT = 0x280,
    NVME_READ_ERROR = 0x281,
    NVME_COMPARE_FAILURE = 0x285 | NVME_DNR,
};

/* ---- Asynchronous events (section 5.2) ----------------------------------------------------- */

#define NVME_EVENT(type, info, log)   ((type) | (info) << 8 | (log) << 16)
#define NVME_EVENT_TYPE(event)        ((event)&0x7u)
#define NVME_EVENT_ERROR              0u
#define NVME_EVENT_HEALTH             1u
#define NVME_EVENT_BAD_DOORBELL       NVME_EVENT(NVME_EVENT_ERROR, 0u, NVME_LOG_ERROR)
#define NVME_EVENT_BAD_DOORBELL_VALUE NVME_EVENT(NVME_EVENT_ERROR, 1u, NVME_LOG_ERROR)
#define NVME_EVENT_RELIABILITY        NVME_EVENT(NVME_EVENT_HEALTH, 0u, NVME_LOG_HEALTH)
#define NVME_EVENT_TEMPERATURE        NVME_EVENT(NVME_EVENT_HEALTH, 1u, NVME_LOG_HEALTH)
#define NVME_WARN_TEMPERATURE         0x02u /* of both the health log and event configuration */
#define NVME_WARN_RELIABILITY         0x04u

/* ---- Identify (section 5.15) --------------------------------------------------------------- */

#define NVME_NSID_ALL   0xffffffffu
#define NVME_OACS_DBBUF 0x100u /* Doorbell Buffer Config */

enum nvme_cns {
    NVME_CNS_NS = 0x00,
    NVME_CNS_CTRL = 0x01,
    NVME_CNS_ACTIVE_NS = 0x02,
    NVME_CNS_NS_DESCRIPTORS = 0x03,
    NVME_CNS_CSI_NS = 0x05,
    NVME_CNS_CSI_CTRL = 0x06,
    NVME_CNS_ALLOCATED_NS = 0x10,
    NVME_CNS_ALLOCATED_NS_DATA = 0x11,
    NVME_CNS_NS_CTRLS = 0x12,
    NVME_CNS_CTRLS = 0x13,
};

struct nvme_power_state {
    uint16_t max_power; /* 10 mW; 0: not reported */
    uint8_t reserved[30];
};

struct nvme_id_ctrl {
    uint16_t vid, ssvid;
    char sn[20], mn[40], fr[8];
    uint8_t rab;
    uint8_t ieee[3];
    uint8_t cmic, mdts;
    uint16_t cntlid;
    uint32_t ver, rtd3r, rtd3e, oaes, ctratt;
    uint16_t rrls;
    uint8_t reserved102[9];
    uint8_t cntrltype;
    uint8_t fguid[16];
    uint8_t reserved128[128];
    uint16_t oacs;
    uint8_t acl, aerl, frmw, lpa, elpe, npss, avscc, apsta;
    uint16_t wctemp, cctemp, mtfa;
    uint32_t hmpre, hmmin;
    uint8_t tnvmcap[16], unvmcap[16];
    uint8_t reserved312[200];
    uint8_t sqes, cqes;
    uint16_t maxcmd;
    uint32_t nn;
    uint16_t oncs, fuses;
    uint8_t fna, vwc;
    uint16_t awun, awupf;
    uint8_t nvscc, nwpc;
    uint16_t acwu, reserved534;
    uint32_t sgls, mnan;
    uint8_t reserved544[224];
    char subnqn[256];
    uint8_t reserved1024[1024];
    struct nvme_power_state psd[32];
    uint8_t vendor[1024];
};
static_assert(sizeof(struct nvme_id_ctrl) == 4096, "Identify Controller");
static_assert(offsetof(struct nvme_id_ctrl, cntrltype) == 111, "CNTRLTYPE");
static_assert(offsetof(struct nvme_id_ctrl, oacs) == 256, "OACS");
static_assert(offsetof(struct nvme_id_ctrl, wctemp) == 266, "WCTEMP");
static_assert(offsetof(struct nvme_id_ctrl, sqes) == 512, "SQES");
static_assert(offsetof(struct nvme_id_ctrl, vwc) == 525, "VWC");
static_assert(offsetof(struct nvme_id_ctrl, sgls) == 536, "SGLS");
static_assert(offsetof(struct nvme_id_ctrl, subnqn) == 768, "SUBNQN");
static_assert(offsetof(struct nvme_id_ctrl, psd) == 2048, "power states");

struct nvme_lba_format {
    uint16_t ms;
    uint8_t lbads, rp;
};

struct nvme_id_ns {
    uint64_t nsze, ncap, nuse;
    uint8_t nsfeat, nlbaf, flbas, mc, dpc, dps, nmic, rescap, fpi, dlfeat;
    uint16_t nawun, nawupf, nacwu, nabsn, nabo, nabspf, noiob;
    uint8_t nvmcap[16];
    uint16_t npwg, npwa, npdg, npda, nows;
    uint8_t reserved74[18];
    uint32_t anagrpid;
    uint8_t reserved96[3];
    uint8_t nsattr;
    uint16_t nvmsetid, endgid;
    uint8_t nguid[16], eui64[8];
    struct nvme_lba_format lbaf[16];
    uint8_t reserved192[3904];
};
static_assert(sizeof(struct nvme_id_ns) == 4096, "Identify Namespace");
static_assert(offsetof(struct nvme_id_ns, nvmcap) == 48, "NVMCAP");
static_assert(offsetof(struct nvme_id_ns, nsattr) == 99, "NSATTR");
static_assert(offsetof(struct nvme_id_ns, nguid) == 104, "NGUID");
static_assert(offsetof(struct nvme_id_ns, lbaf) == 128, "LBA formats");

/* ---- Features (section 5.21) --------------------------------------------------------------- */

enum nvme_feature {
    NVME_FEAT_ARBITRATION = 0x01,
    NVME_FEAT_POWER = 0x02,
    NVME_FEAT_TEMPERATURE = 0x04,
    NVME_FEAT_ERROR_RECOVERY = 0x05,
    NVME_FEAT_WRITE_CACHE = 0x06,
    NVME_FEAT_QUEUES = 0x07,
    NVME_FEAT_COALESCING = 0x08,
    NVME_FEAT_VECTOR = 0x09,
    NVME_FEAT_ATOMICITY = 0x0a,
    NVME_FEAT_ASYNC_EVENT = 0x0b,
    NVME_FEAT_TIMESTAMP = 0x0e,
};

/* Interrupt Coalescing: completions (0: one), and units of 100 us */
#define NVME_COALESCE_THRESHOLD(dw11) (((dw11)&0xffu) + 1)
#define NVME_COALESCE_TIME(dw11)      ((dw11) >> 8 & 0xffu)
#define NVME_COALESCE_UNIT_NS         100000LL
/* Interrupt Vector Configuration */
#define NVME_VECTOR_NO_COALESCING     0x10000u

/* ---- Logs (section 5.14) ------------------------------------------------------------------- */

enum nvme_log {
    NVME_LOG_ERROR = 0x01,
    NVME_LOG_HEALTH = 0x02,
    NVME_LOG_FIRMWARE = 0x03,
    NVME_LOG_CHANGED_NS = 0x04,
    NVME_LOG_EFFECTS = 0x05,
};

struct nvme_error_entry {
    uint64_t count;
    uint16_t sq_id, cid, status, location;
    uint64_t lba;
    uint32_t nsid;
    uint8_t vendor, trtype;
    uint8_t reserved30[2];
    uint64_t specific;
    uint16_t trtype_specific;
    uint8_t reserved42[22];
};
static_assert(sizeof(struct nvme_error_entry) == 64, "error log entry");

struct nvme_count128 {
    uint64_t low, high;
};

struct nvme_health_log {
    uint8_t critical_warning;
    uint8_t temperature[2]; /* kelvin */
    uint8_t spare, spare_threshold, used;
    uint8_t reserved6[26];
    struct nvme_count128 units_read, units_written; /* thousands of 512 bytes */
    struct nvme_count128 reads, writes;
    struct nvme_count128 busy_minutes, power_cycles, power_on_hours, unsafe_shutdowns;
    struct nvme_count128 media_errors, error_entries;
    uint32_t warning_minutes, critical_minutes;
    uint8_t reserved200[312];
};
static_assert(sizeof(struct nvme_health_log) == 512, "SMART / health log");
static_assert(offsetof(struct nvme_health_log, warning_minutes) == 192, "health log");

struct nvme_firmware_log {
    uint8_t active;
    uint8_t reserved1[7];
    char slots[7][8];
    uint8_t reserved64[448];
};
static_assert(sizeof(struct nvme_firmware_log) == 512, "firmware log");

#define NVME_EFFECT_SUPPORTED 0x1u
#define NVME_EFFECT_CONTENT   0x2u /* changes the data of the namespace */

struct nvme_effects_log {
    uint32_t admin[256], io[256];
    uint8_t reserved2048[2048];
};
static_assert(sizeof(struct nvme_effects_log) == 4096, "commands supported and effects");

#endif
