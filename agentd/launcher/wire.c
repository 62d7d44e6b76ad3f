/* Building and reading messages of the broker's protocol. Little endian hosts only (checked below): fields are copied. */
#include "wire.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the broker's protocol is little endian and this code copies integers as they are"
#endif

#define HEADER 8
#define FIELD_HEADER 8

static const unsigned char MAGIC[4] = {'C', 'R', 'L', '1'};

static uint16_t get16(const unsigned char *at)
{
	uint16_t value;
	memcpy(&value, at, sizeof value);
	return value;
}

static uint32_t get32(const unsigned char *at)
{
	uint32_t value;
	memcpy(&value, at, sizeof value);
	return value;
}

void wire_start(struct wire_out *out, enum wire_type type)
{
	uint16_t type16 = (uint16_t)type;

	memcpy(out->bytes, MAGIC, 4);
	memcpy(out->bytes + 4, &type16, 2);
	memset(out->bytes + 6, 0, 2);
	out->length = HEADER;
	out->overflow = 0;
}

/* Room for a field of `length` bytes, or NULL. */
static unsigned char *reserve(struct wire_out *out, enum wire_tag tag, size_t length)
{
	unsigned char *at = out->bytes + out->length;
	uint16_t tag16 = (uint16_t)tag;
	uint32_t length32 = (uint32_t)length;

	if (length > WIRE_MAX || out->length + FIELD_HEADER + length > WIRE_MAX) {
		out->overflow = 1;
		return NULL;
	}
	memcpy(at, &tag16, 2);
	memset(at + 2, 0, 2);
	memcpy(at + 4, &length32, 4);
	out->length += FIELD_HEADER + length;
	return at + FIELD_HEADER;
}

void wire_bytes(struct wire_out *out, enum wire_tag tag, const void *data, size_t length)
{
	unsigned char *at = reserve(out, tag, length);

	if (at)
		memcpy(at, data, length);
}

void wire_text(struct wire_out *out, enum wire_tag tag, const char *text)
{
	wire_bytes(out, tag, text, strlen(text));
}

void wire_u8(struct wire_out *out, enum wire_tag tag, uint8_t value)
{
	wire_bytes(out, tag, &value, sizeof value);
}

void wire_u32(struct wire_out *out, enum wire_tag tag, uint32_t value)
{
	wire_bytes(out, tag, &value, sizeof value);
}

void wire_u64(struct wire_out *out, enum wire_tag tag, uint64_t value)
{
	wire_bytes(out, tag, &value, sizeof value);
}

void wire_f64(struct wire_out *out, enum wire_tag tag, double value)
{
	wire_bytes(out, tag, &value, sizeof value);
}

void wire_argv(struct wire_out *out, char *const argv[])
{
	size_t total = 0, room = WIRE_ARGV_MAX;
	unsigned char *at;

	for (size_t i = 0; argv[i] && total < WIRE_ARGV_MAX; i++)
		total += strlen(argv[i]) + (i > 0);
	if (total < room)
		room = total;
	at = reserve(out, TAG_ARGV, room);
	if (!at)
		return;
	for (size_t i = 0; argv[i] && room > 0; i++) {
		size_t length = strlen(argv[i]);

		if (i > 0) {
			*at++ = 0;
			room--;
		}
		if (length > room)
			length = room;
		memcpy(at, argv[i], length);
		at += length;
		room -= length;
	}
}

int wire_open(struct wire_in *in, const void *bytes, size_t length)
{
	in->bytes = bytes;
	in->length = length;
	in->at = HEADER;
	if (length < HEADER || memcmp(in->bytes, MAGIC, 4) != 0)
		return -1;
	in->type = get16(in->bytes + 4);
	return 0;
}

int wire_next(struct wire_in *in, struct wire_field *field)
{
	size_t left = in->length - in->at;

	if (left == 0)
		return 0;
	if (left < FIELD_HEADER)
		return -1;
	field->tag = get16(in->bytes + in->at);
	field->length = get32(in->bytes + in->at + 4);
	if (field->length > left - FIELD_HEADER)
		return -1;
	field->data = in->bytes + in->at + FIELD_HEADER;
	in->at += FIELD_HEADER + field->length;
	return 1;
}

int wire_find(const struct wire_in *in, enum wire_tag tag, struct wire_field *field)
{
	struct wire_in copy = *in;

	copy.at = HEADER;
	while (wire_next(&copy, field) == 1)
		if (field->tag == (unsigned)tag)
			return 1;
	return 0;
}
