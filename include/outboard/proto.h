/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The vfio-user protocol: numbers, wire layouts, limits, and the message table that everything
 * else is derived from. No function here does I/O, allocates or keeps state.
 *
 * All integers on the wire are in host byte order (both ends run on one machine). The wire
 * structures are copied in and out of messages with ob_get() and ob_put_*(): a pointer into a
 * received buffer is never cast to one of them.
 */
#ifndef OUTBOARD_PROTO_H
#define OUTBOARD_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Limits ------------------------------------------------------------------------------- */

#define OB_VERSION_MAJOR 0
#define OB_VERSION_MINOR 0 /* QEMU's client takes nothing above 0 */

#define OB_MSG_FDS_MAX       253 /* fds we take in one message: the kernel's SCM_MAX_FD */
#define OB_MSG_FDS_OFFER     16 /* fds we advertise: QEMU's client refuses a server that says more */
#define OB_MSG_FDS_DEFAULT   1  /* assumed of a peer that does not say */
#define OB_DATA_XFER_MAX     1048576u /* bytes of data we take in one message, and advertise */
#define OB_DATA_XFER_DEFAULT 1048576u
#define OB_DMA_MAPS_MAX      65535u /* simultaneous DMA mappings we keep, and advertise */
#define OB_DMA_MAPS_DEFAULT  65535u
#define OB_PGSIZES_DEFAULT   4096u
#define OB_VERSION_JSON_MAX  4096u /* bytes of negotiation JSON we take, NUL included */
#define OB_VERSION_JSON_QEMU 194u  /* the same in our reply: QEMU's client has no room for more */
#define OB_REGIONS_MAX       64u   /* regions of one device */
#define OB_IRQS_MAX          16u   /* IRQ indexes of one device */
#define OB_IRQ_VECTORS_MAX   2048u /* vectors of one IRQ index */
#define OB_SPARSE_AREAS_MAX  64u   /* mappable areas of one region */
#define OB_IOEVENTFDS_MAX    64u   /* sub-regions of one GET_REGION_IO_FDS reply */
#define OB_REGION_INFO_MAX   4096u /* bytes of one region info with its capabilities */
#define OB_WRITE_MULTI_MAX   (OB_DATA_XFER_MAX / 24u) /* entries of one REGION_WRITE_MULTI */

/* How long a wait polls before it sleeps, unless it is told otherwise. Waking a thread on an idle
 * CPU may take 30 us: less would never bring two sleepers to poll. */
#define OB_SPIN_US_DEFAULT 50u
#define OB_SPIN_US_MAX     10000u

/* Largest payload of any message: data of the largest transfer and the fixed part before it. */
#define OB_PAYLOAD_MAX (OB_DATA_XFER_MAX + 64u)
#define OB_MSG_MAX     ((uint32_t)sizeof(struct ob_wire_hdr) + OB_PAYLOAD_MAX)

/* ---- Header ------------------------------------------------------------------------------- */

/* Commands 1 to 18. Number 14 (DIRTY_PAGES) was removed from the protocol: always refused. */
enum ob_cmd {
    OB_CMD_VERSION = 1,
    OB_CMD_DMA_MAP = 2,
    OB_CMD_DMA_UNMAP = 3,
    OB_CMD_DEVICE_GET_INFO = 4,
    OB_CMD_DEVICE_GET_REGION_INFO = 5,
    OB_CMD_DEVICE_GET_REGION_IO_FDS = 6,
    OB_CMD_DEVICE_GET_IRQ_INFO = 7,
    OB_CMD_DEVICE_SET_IRQS = 8,
    OB_CMD_REGION_READ = 9,
    OB_CMD_REGION_WRITE = 10,
    OB_CMD_DMA_READ = 11,
    OB_CMD_DMA_WRITE = 12,
    OB_CMD_DEVICE_RESET = 13,
    OB_CMD_DIRTY_PAGES = 14,
    OB_CMD_REGION_WRITE_MULTI = 15,
    OB_CMD_DEVICE_FEATURE = 16,
    OB_CMD_MIG_DATA_READ = 17,
    OB_CMD_MIG_DATA_WRITE = 18,
    OB_CMD_LAST = OB_CMD_MIG_DATA_WRITE
};

/* ob_wire_hdr.flags */
#define OB_HDR_TYPE_MASK 0x0000000fu
#define OB_HDR_COMMAND   0x00000000u
#define OB_HDR_REPLY     0x00000001u
#define OB_HDR_NO_REPLY  0x00000010u /* commands: do not answer */
#define OB_HDR_ERROR     0x00000020u /* replies: error_no holds an errno (or 0) */

struct ob_wire_hdr {
    uint16_t msg_id;   /* chosen by the sender of the command, copied into the reply */
    uint16_t cmd;      /* enum ob_cmd */
    uint32_t msg_size; /* of the whole message, this header included */
    uint32_t flags;
    uint32_t error_no;
};

/* ---- Payloads ----------------------------------------------------------------------------- */

struct ob_wire_version { /* then JSON, NUL-terminated */
    uint16_t major;
    uint16_t minor;
};

#define OB_DMA_READ        0x1u /* the server may read */
#define OB_DMA_WRITE       0x2u /* the server may write */
#define OB_DMA_ACCESS_MMAP 0x4u /* the server shall mmap the fd */
#define OB_DMA_ACCESS_FILE 0x8u /* the server shall use pread and pwrite on the fd */

struct ob_wire_dma_map {
    uint32_t argsz;
    uint32_t flags;
    uint64_t offset; /* in the fd */
    uint64_t address;
    uint64_t size;
};

#define OB_DMA_UNMAP_GET_DIRTY 0x1u /* return a dirty bitmap */
#define OB_DMA_UNMAP_ALL       0x2u /* everything; address and size are 0 */

struct ob_wire_dma_unmap { /* with GET_DIRTY: then struct ob_wire_bitmap (reply: and the bitmap) */
    uint32_t argsz;
    uint32_t flags;
    uint64_t address;
    uint64_t size;
};

struct ob_wire_bitmap {
    uint64_t pgsize;
    uint64_t size; /* bytes of the bitmap */
};

#define OB_DEVICE_RESET 0x1u /* DEVICE_RESET is supported */
#define OB_DEVICE_PCI   0x2u

struct ob_wire_device_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t num_regions;
    uint32_t num_irqs;
};

/* Region indexes of a PCI device; more may follow. */
enum ob_pci_region {
    OB_PCI_REGION_BAR0 = 0,
    OB_PCI_REGION_BAR5 = 5,
    OB_PCI_REGION_ROM = 6,
    OB_PCI_REGION_CONFIG = 7,
    OB_PCI_REGION_VGA = 8,
    OB_PCI_REGIONS = 9
};

#define OB_REGION_READ  0x1u
#define OB_REGION_WRITE 0x2u
#define OB_REGION_MMAP  0x4u /* an fd comes with the reply */
#define OB_REGION_CAPS  0x8u

struct ob_wire_region_info { /* then capabilities */
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t cap_offset; /* from the start of this structure; 0: none */
    uint64_t size;
    uint64_t offset; /* in the fd */
};

enum ob_region_cap { OB_CAP_SPARSE_MMAP = 1, OB_CAP_TYPE = 2, OB_CAP_MSIX_MAPPABLE = 3 };

struct ob_wire_cap {
    uint16_t id;
    uint16_t version;
    uint32_t next; /* from the start of struct ob_wire_region_info; 0: last */
};

struct ob_wire_cap_sparse { /* then nr_areas of struct ob_wire_sparse_area */
    struct ob_wire_cap header;
    uint32_t nr_areas;
    uint32_t reserved;
};

struct ob_wire_sparse_area {
    uint64_t offset; /* in the region */
    uint64_t size;
};

struct ob_wire_cap_type {
    struct ob_wire_cap header;
    uint32_t type;
    uint32_t subtype;
};

struct ob_wire_region_io_fds { /* reply: then count entries */
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t count;
};

enum ob_io_fd_type { OB_IO_FD_EVENTFD = 0, OB_IO_FD_REGIONFD = 1, OB_IO_FD_SHADOW = 2 };

struct ob_wire_ioeventfd { /* as specified */
    uint64_t offset;
    uint64_t size;
    uint32_t fd_index;
    uint32_t type;
    uint32_t flags;
    uint32_t padding;
    uint64_t datamatch;
};

struct ob_wire_ioeventfd_shadow { /* the longer form that libvfio-user sends */
    uint64_t offset;
    uint64_t size;
    uint32_t fd_index;
    uint32_t type;
    uint32_t flags;
    uint32_t shadow_mem_fd_index;
    uint64_t shadow_offset;
    uint64_t datamatch;
};

/* IRQ indexes of a PCI device; more may follow. */
enum ob_pci_irq {
    OB_PCI_IRQ_INTX = 0,
    OB_PCI_IRQ_MSI = 1,
    OB_PCI_IRQ_MSIX = 2,
    OB_PCI_IRQ_ERR = 3,
    OB_PCI_IRQ_REQ = 4,
    OB_PCI_IRQS = 5
};

#define OB_IRQ_EVENTFD    0x1u
#define OB_IRQ_MASKABLE   0x2u
#define OB_IRQ_AUTOMASKED 0x4u /* level-triggered: masked by triggering, until UNMASK */
#define OB_IRQ_NORESIZE   0x8u

struct ob_wire_irq_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t count;
};

#define OB_IRQ_SET_DATA_NONE      0x01u
#define OB_IRQ_SET_DATA_BOOL      0x02u
#define OB_IRQ_SET_DATA_EVENTFD   0x04u
#define OB_IRQ_SET_DATA_MASK      0x07u
#define OB_IRQ_SET_ACTION_MASK    0x08u
#define OB_IRQ_SET_ACTION_UNMASK  0x10u
#define OB_IRQ_SET_ACTION_TRIGGER 0x20u
#define OB_IRQ_SET_ACTIONS        0x38u /* all three */

struct ob_wire_set_irqs { /* with DATA_BOOL: then count bytes; with DATA_EVENTFD: count fds */
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t start;
    uint32_t count;
};

struct ob_wire_region_access { /* REGION_READ, REGION_WRITE; then count bytes where data goes */
    uint64_t offset;
    uint32_t region;
    uint32_t count;
};

struct ob_wire_dma_access { /* DMA_READ, DMA_WRITE; then count bytes where data goes */
    uint64_t address;
    uint64_t count;
};

struct ob_wire_write_multi { /* then count entries (reply: none) */
    uint64_t count;
};

#define OB_WRITE_MULTI_DATA 8u /* most bytes one entry writes */

struct ob_wire_write_multi_entry {
    uint64_t offset;
    uint32_t region;
    uint32_t count;
    uint8_t data[OB_WRITE_MULTI_DATA];
};

#define OB_FEATURE_MASK  0x0000ffffu /* the feature's number */
#define OB_FEATURE_GET   0x00010000u
#define OB_FEATURE_SET   0x00020000u
#define OB_FEATURE_PROBE 0x00040000u

enum ob_feature {
    OB_FEATURE_MIGRATION = 1,
    OB_FEATURE_MIG_DEVICE_STATE = 2,
    OB_FEATURE_DMA_LOGGING_START = 6,
    OB_FEATURE_DMA_LOGGING_STOP = 7,
    OB_FEATURE_DMA_LOGGING_REPORT = 8
};

struct ob_wire_feature { /* then the feature's data */
    uint32_t argsz;
    uint32_t flags;
};

#define OB_MIG_STOP_COPY 0x1u /* data of the MIGRATION feature: 8 bytes */
#define OB_MIG_P2P       0x2u
#define OB_MIG_PRE_COPY  0x4u

/* States of a device, as the DEVICE_STATE feature has them. */
enum ob_mig_state {
    OB_MIG_STATE_ERROR = 0,     /* only a reset helps */
    OB_MIG_STATE_STOP = 1,      /* it does nothing by itself: no DMA, no interrupt, no change */
    OB_MIG_STATE_RUNNING = 2,   /* the state at first */
    OB_MIG_STATE_STOP_COPY = 3, /* as STOP; its state is being read */
    OB_MIG_STATE_RESUMING = 4,  /* as STOP; its state is being written */
    OB_MIG_STATE_PRE_COPY = 6,  /* it runs, and its state is being read */
};

struct ob_wire_mig_state {
    uint32_t device_state; /* enum ob_mig_state */
    uint32_t data_fd;      /* not used */
};

struct ob_dma_range {
    uint64_t iova;
    uint64_t length;
};

struct ob_wire_logging_start { /* then num_ranges of struct ob_dma_range; 0: everything */
    uint64_t page_size;
    uint32_t num_ranges;
    uint32_t reserved;
};

struct ob_wire_logging_report { /* reply: then the bitmap */
    uint64_t iova;
    uint64_t length;
    uint64_t page_size;
};

struct ob_wire_mig_data { /* then size bytes where data goes */
    uint32_t argsz;
    uint32_t size;
};

/* ---- Negotiated capabilities --------------------------------------------------------------- */

/* What one side said in its VERSION message; defaults where it was silent. */
struct ob_caps {
    uint32_t max_msg_fds;        /* fds that side takes in one message */
    uint32_t max_data_xfer_size; /* bytes of data it takes in one message */
    uint32_t max_dma_maps;
    uint64_t pgsizes;    /* OR of the page sizes usable in DMA_MAP */
    bool write_multiple; /* REGION_WRITE_MULTI may be used */
    bool mapped_order;   /* posted writes and stores to mapped areas keep their order */
    bool twin_socket;
    int twin_fd_index; /* in a reply: index into its fds, else -1 */
    bool ring;         /* accesses to registers without system calls */
    int ring_fd_index; /* likewise */
    bool migration;
    uint64_t migration_pgsize;
    uint64_t migration_max_bitmap_size; /* 0: not said */
};

/* ---- The message table -------------------------------------------------------------------- */

enum ob_dir {
    OB_CLIENT_TO_SERVER,
    OB_SERVER_TO_CLIENT,
};

/* Connection states; a table row says in which ones its command is legal. */
enum ob_state {
    OB_STATE_NEGOTIATE = 1, /* nothing but VERSION has been seen */
    OB_STATE_READY = 2,     /* VERSION was answered with success */
};

/* One wire field: a row of a message's byte table. */
struct ob_field {
    const char *name;
    uint16_t offset; /* from the start of the payload */
    uint16_t size;
};

/* One direction of a command: what may follow the 16-byte header, and which fds come along. */
struct ob_shape {
    uint32_t min; /* payload bytes: the fixed part */
    uint32_t max; /* payload bytes: fixed part and variable part */
    uint16_t fds_max;
    const struct ob_field *fields; /* of the fixed part, nfields of them */
    uint16_t nfields;
};

struct ob_msg_type {
    uint16_t cmd;
    const char *name; /* "DEVICE_GET_INFO" */
    uint8_t dir;      /* enum ob_dir: who sends the command */
    uint8_t states;   /* set of enum ob_state in which it is legal */
    bool live;        /* false: only the number remains (DIRTY_PAGES); always refused */
    struct ob_shape request;
    struct ob_shape reply; /* of a reply without error; an error reply may have any payload */
};

/* The row of a command, or NULL when there is none with that number. Since 0.1. */
const struct ob_msg_type *ob_msg_type(uint16_t cmd);

/* Why a message was refused; see ob_strreason(). */
enum ob_reason {
    OB_OK = 0,
    OB_BAD_TYPE,      /* neither command nor reply, or not what was expected */
    OB_BAD_CMD,       /* no such command; in a reply: not the command that was sent */
    OB_BAD_DIRECTION, /* the other side's command */
    OB_BAD_STATE,     /* not now */
    OB_BAD_FLAGS,     /* undefined header flags */
    OB_TOO_SHORT,
    OB_TOO_LONG,
    OB_TOO_MANY_FDS, /* not told by a header: for who compares the fds with fds_max */
};

/*
 * Checks what can be told from a command's header alone, before its payload is read. dir: of the
 * command; state: of the connection. On OB_OK the payload is within the row's bounds.
 * Rules: R-HDR-3, R-HDR-4, R-HDR-10, R-HDR-11 of docs/protocol.md. Since 0.1.
 */
enum ob_reason ob_check_command(const struct ob_wire_hdr *hdr, enum ob_dir dir,
                                enum ob_state state);

/* Checks the header of a reply to command cmd. An error reply is let through with any payload
 * within OB_PAYLOAD_MAX, also when cmd is none that we know. Since 0.1. */
enum ob_reason ob_check_reply(const struct ob_wire_hdr *hdr, uint16_t cmd);

/* The errno that a refused command is answered with: EINVAL, the one that all known peers send
 * and expect; 0 for OB_OK. Since 0.1. */
int ob_reason_errno(enum ob_reason reason);

/* Printable names; never NULL, static storage. Since 0.1. */
const char *ob_strreason(enum ob_reason reason);
const char *ob_strcmd(uint16_t cmd);
const char *ob_strirq(unsigned index);    /* "INTx", "MSI" ...; "IRQ" past the known ones */
const char *ob_strregion(unsigned index); /* "BAR0" ... "ROM", "config", "VGA"; "region" */
const char *ob_strfeature(unsigned feature);

/* ---- Cursor ------------------------------------------------------------------------------- */

/* Reads a peer's bytes in order and never past their end. After a failed read everything
 * fails, so a run of reads needs one check. */
struct ob_cursor {
    const uint8_t *data;
    size_t len;
    size_t pos;
    bool failed;
};

void ob_cursor_init(struct ob_cursor *cur, const void *data, size_t len);
/* Copies the next len bytes to out; on failure out is zeroed and false returned. */
bool ob_cursor_get(struct ob_cursor *cur, void *out, size_t len);
/* The next len bytes in place (valid as long as the data), or NULL. */
const void *ob_cursor_take(struct ob_cursor *cur, size_t len);
bool ob_cursor_seek(struct ob_cursor *cur, size_t pos);
size_t ob_cursor_left(const struct ob_cursor *cur);

/* Builds a payload in a caller's buffer; overflow sets failed and writes nothing. */
struct ob_writer {
    uint8_t *data;
    size_t size;
    size_t len;
    bool failed;
};

void ob_writer_init(struct ob_writer *w, void *data, size_t size);
void ob_writer_put(struct ob_writer *w, const void *data, size_t len);

/* ---- Requests with rules beyond their size ------------------------------------------------ */
/*
 * Each decodes a payload and checks every rule that can be checked without knowing the device.
 * They return 0 and fill the output, or a negative errno (what a server answers) and leave it
 * untouched. Pointers in the output lie within the payload. Since 0.1.
 */

int ob_decode_dma_map(const void *payload, size_t len, unsigned nfds, struct ob_wire_dma_map *out);
/* bitmap is filled when flags has GET_DIRTY. */
int ob_decode_dma_unmap(const void *payload, size_t len, struct ob_wire_dma_unmap *out,
                        struct ob_wire_bitmap *bitmap);
int ob_decode_device_info(const void *payload, size_t len, struct ob_wire_device_info *out);
int ob_decode_region_info(const void *payload, size_t len, struct ob_wire_region_info *out);
int ob_decode_region_io_fds(const void *payload, size_t len, struct ob_wire_region_io_fds *out);
int ob_decode_irq_info(const void *payload, size_t len, struct ob_wire_irq_info *out);
/*
 * bools: count bytes with DATA_BOOL, else NULL. With DATA_EVENTFD nfds is count, or 0: take the
 * eventfds of these vectors back. count 0: take back all eventfds of the index.
 */
int ob_decode_set_irqs(const void *payload, size_t len, unsigned nfds, struct ob_wire_set_irqs *out,
                       const uint8_t **bools);
/* data: count bytes when has_data (REGION_WRITE, and the reply to REGION_READ), else untouched.
 * A reply's header alone, as libvfio-user answers count 0 with, is not for this function. */
int ob_decode_region_access(const void *payload, size_t len, bool has_data, uint32_t max_count,
                            struct ob_wire_region_access *out, const void **data);
int ob_decode_dma_access(const void *payload, size_t len, bool has_data, uint32_t max_count,
                         struct ob_wire_dma_access *out, const void **data);
/* entries: cursor over count entries. */
int ob_decode_write_multi(const void *payload, size_t len, uint64_t *count,
                          struct ob_cursor *entries);
int ob_decode_feature(const void *payload, size_t len, struct ob_wire_feature *out,
                      struct ob_cursor *data);
/* Data of DMA_LOGGING_START: every range exists, none is empty. */
int ob_decode_logging_start(struct ob_cursor data, struct ob_wire_logging_start *out);
/* Data of DMA_LOGGING_REPORT. bitmap_size: bytes of the bitmap, at most max_bitmap. What follows
 * (QEMU sends room for the reply) is ignored. */
int ob_decode_logging_report(struct ob_cursor data, uint64_t max_bitmap,
                             struct ob_wire_logging_report *out, uint64_t *bitmap_size);
/* Bytes of a dirty bitmap: a bit for each page, in whole words of 8 bytes. length > 0. */
uint64_t ob_bitmap_size(uint64_t length, uint64_t page_size);
/* data: size bytes when has_data; more may follow them in the payload. */
int ob_decode_mig_data(const void *payload, size_t len, bool has_data, uint32_t max_size,
                       struct ob_wire_mig_data *out, const void **data);

#define OB_IOEVENTFD_DATAMATCH 0x1u /* only writes of the value datamatch */
#define OB_IOEVENTFD_PIO       0x2u /* in I/O space */

/* Writes that are signalled by an eventfd instead of a message. */
struct ob_ioeventfd {
    uint64_t offset; /* in the region */
    uint64_t size;   /* of the write: 1, 2, 4 or 8; 0: any */
    uint64_t datamatch;
    uint32_t flags; /* OB_IOEVENTFD_* */
};

/* Whether it is in the region and makes sense. Since 0.1. */
bool ob_ioeventfd_valid(const struct ob_ioeventfd *e, uint64_t region_size);
/* Whether a write could match both, at the same offset: KVM then takes only one. Since 0.1. */
bool ob_ioeventfds_clash(const struct ob_ioeventfd *a, const struct ob_ioeventfd *b);

/* One mappable part of a region. */
struct ob_sparse_area {
    uint64_t offset; /* in the region */
    uint64_t size;
};

/* A region as GET_REGION_INFO describes it. */
struct ob_region_layout {
    uint32_t flags; /* OB_REGION_READ | WRITE | MMAP */
    uint64_t size;
    uint64_t fd_offset;     /* where the region starts in its fd */
    uint32_t type, subtype; /* of a device-specific region; 0, 0: none */
    uint32_t nareas;        /* 0 with OB_REGION_MMAP: the whole region is mappable */
    struct ob_sparse_area areas[OB_SPARSE_AREAS_MAX];
};

/*
 * Parses the reply of GET_REGION_INFO, capability chain included, and checks it against itself:
 * every area inside the region, none overlapping, the chain inside the payload and without loops.
 * A region of which nothing can be mapped loses OB_REGION_MMAP: one of no bytes, one with an empty
 * list of areas, and a reply that says (in argsz) that capabilities did not fit.
 * 0, or -EPROTO with *why set to a static sentence.
 */
int ob_decode_region_layout(const void *payload, size_t len, uint32_t index,
                            struct ob_region_layout *out, const char **why);
/* Writes that reply into w, limited to argsz as the protocol says; returns true when it is whole
 * (and so may carry the fd). A wholly mappable region is written as one area. */
bool ob_encode_region_layout(struct ob_writer *w, uint32_t index, uint32_t argsz,
                             const struct ob_region_layout *layout);

#ifdef __cplusplus
}
#endif
#endif
