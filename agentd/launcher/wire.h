/* The broker's protocol, as docs/architecture.md ("The broker's protocol") lays it down; agentd/wire.py is the other side.
 *
 * One message is one SOCK_SEQPACKET packet, little endian: an 8 byte header (magic, u16 type, u16 flags), then fields
 * (u16 tag, u16 zero, u32 length, bytes). */
#ifndef CORRAL_WIRE_H
#define CORRAL_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define WIRE_MAX 65536      /* bytes of one message */
#define WIRE_ARGV_MAX 32768 /* bytes of ARGV; what is longer is cut: it is for people and for learning */
#define WIRE_ID_MAX 32      /* bytes of an id ("c-" and 16 characters today) with its NUL */

enum wire_type {
	WIRE_BEGIN = 1,
	WIRE_GRANT = 2,
	WIRE_REFUSED = 3,
	WIRE_QUEUED = 4,
	WIRE_ACTED = 5,
	WIRE_END = 6,
	WIRE_OUTCOME = 7,
	WIRE_RESUME = 8,
	WIRE_OPEN = 9,
	WIRE_OPENED = 10,
	WIRE_ENTER = 11,
	WIRE_OK = 12,
	WIRE_CLOSE = 13,
};

enum wire_tag {
	TAG_ARGV = 1,
	TAG_TOKEN = 2,
	TAG_SESSION = 3,
	TAG_CALL = 4,
	TAG_CODE = 5,
	TAG_MESSAGE = 6,
	TAG_NOTE = 7,
	TAG_ETA = 8,
	TAG_STATUS = 9,
	TAG_WANT = 10,
	TAG_REASON = 11,
	TAG_TENANT = 12,
	TAG_NAME = 13,
	TAG_ENFORCED = 14,
	TAG_SUGGESTION = 15,
	TAG_KILL = 16,
	TAG_TOOL = 20,
	TAG_CLASS = 21,
	TAG_MEMORY_TYPICAL = 22,
	TAG_MEMORY_PEAK = 23,
	TAG_CPU = 24,
	TAG_PIDS = 25,
	TAG_DURATION = 26,
	TAG_DEADLINE = 27,
	TAG_PRIORITY = 28,
	TAG_NETWORK = 29,
	TAG_EGRESS = 30,
	TAG_GPU = 31,
	TAG_ON_PRESSURE = 32,
	TAG_ENGINE = 33,
	TAG_CONVERSATION = 34,
};

/* A message under construction. Once something did not fit, `overflow` stays set and the message must not be sent. */
struct wire_out {
	unsigned char bytes[WIRE_MAX];
	size_t length;
	int overflow;
};

void wire_start(struct wire_out *out, enum wire_type type);
void wire_bytes(struct wire_out *out, enum wire_tag tag, const void *data, size_t length);
void wire_text(struct wire_out *out, enum wire_tag tag, const char *text);
void wire_u8(struct wire_out *out, enum wire_tag tag, uint8_t value);
void wire_u32(struct wire_out *out, enum wire_tag tag, uint32_t value);
void wire_u64(struct wire_out *out, enum wire_tag tag, uint64_t value);
void wire_f64(struct wire_out *out, enum wire_tag tag, double value);
/* The words of argv, NUL separated, cut at WIRE_ARGV_MAX bytes. */
void wire_argv(struct wire_out *out, char *const argv[]);

/* A message received. Fields are read one after another; an unknown tag is the caller's to skip. */
struct wire_in {
	const unsigned char *bytes;
	size_t length;
	size_t at;
	unsigned type;
};

struct wire_field {
	unsigned tag;
	const unsigned char *data;
	size_t length;
};

/* 0, or -1 when the header is not this protocol's. */
int wire_open(struct wire_in *in, const void *bytes, size_t length);
/* 1 a field, 0 the end, -1 malformed. */
int wire_next(struct wire_in *in, struct wire_field *field);
/* The first field with that tag; 1 found, 0 not there (or the message is malformed before it). */
int wire_find(const struct wire_in *in, enum wire_tag tag, struct wire_field *field);

#endif
