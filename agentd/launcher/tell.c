#define _GNU_SOURCE
#include "tell.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A pipe that nobody reads yet takes 64 KiB: a shorter text can never hold a call's end back. The longest: a message, the
 * suggestions and the notes, each byte of them a \uXXXX. */
#define TEXT_MAX 60000
#define MESSAGE_MOST 6000 /* bytes */
#define SUGGESTIONS_MOST 8
#define SUGGESTION_MOST 400 /* bytes */
#define NOTES_MOST 2
#define NOTE_MOST 300 /* bytes */

static int out_fd = -1;
static const char *out_file;
static int told;

static char text[TEXT_MAX];
static size_t used;

int tell_to(int fd, const char *file)
{
	out_file = file;
	if (fd >= 0 && fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
		return -1;
	out_fd = fd;
	return 0;
}

int tell_wanted(void)
{
	return out_fd >= 0 || out_file;
}

static void put(const char *part)
{
	size_t length = strlen(part);

	if (length > sizeof text - used)
		return; /* cannot be: see the limits above */
	memcpy(text + used, part, length);
	used += length;
}

/* A JSON string. A cut never splits a character: the bytes that continue one (10xxxxxx) go with it. */
static void put_string(const void *data, size_t length, size_t most)
{
	const unsigned char *bytes = data;
	char escaped[8];

	if (length > most)
		for (length = most; length > 0 && (bytes[length] & 0xc0) == 0x80; length--)
			;
	put("\"");
	for (size_t i = 0; i < length; i++) {
		if (bytes[i] < 0x20 || bytes[i] == 0x7f)
			snprintf(escaped, sizeof escaped, "\\u%04x", bytes[i]);
		else if (bytes[i] == '"' || bytes[i] == '\\')
			snprintf(escaped, sizeof escaped, "\\%c", bytes[i]);
		else
			snprintf(escaped, sizeof escaped, "%c", bytes[i]);
		put(escaped);
	}
	put("\"");
}

static void put_text(const char *key, const char *value)
{
	put(",\"");
	put(key);
	put("\":");
	put_string(value, strlen(value), MESSAGE_MOST);
}

static void put_field(const char *key, const struct wire_field *field)
{
	put(",\"");
	put(key);
	put("\":");
	put_string(field->data, field->length, MESSAGE_MOST);
}

static void put_status(int status)
{
	char number[32];

	snprintf(number, sizeof number, ",\"status\":%d", status);
	put(number);
}

static void start(const char *state)
{
	used = 0;
	put("{\"state\":\"");
	put(state);
	put("\"");
}

/* Failures are silent: whoever wanted to read it is gone, or chose a place where nothing can be written, and the tool's
 * own result matters more. */
static void finish(void)
{
	int fd = out_fd;
	size_t at = 0;

	put("}\n");
	told = 1;
	signal(SIGPIPE, SIG_IGN);
	/* O_EXCL: never write into what somebody else laid there. */
	if (out_file)
		fd = open(out_file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
	while (fd >= 0 && at < used) {
		ssize_t written = write(fd, text + at, used - at);

		if (written > 0)
			at += (size_t)written;
		else if (written == 0 || errno != EINTR)
			break;
	}
}

static void put_list(const char *key, const struct wire_in *in, unsigned int tag, int most, size_t bytes)
{
	struct wire_in fields = *in;
	struct wire_field field;
	int count = 0;

	put(",\"");
	put(key);
	put("\":[");
	while (wire_next(&fields, &field) == 1 && count < most) {
		if (field.tag != tag)
			continue;
		if (count++)
			put(",");
		put_string(field.data, field.length, bytes);
	}
	put("]");
}

void tell_ended(const char *call, int status, const struct wire_in *outcome)
{
	struct wire_field field;

	if (!tell_wanted() || told)
		return;
	start("ended");
	put_text("call_id", call);
	put_status(status);
	if (outcome) {
		if (wire_find(outcome, TAG_REASON, &field))
			put_field("reason", &field);
		if (wire_find(outcome, TAG_MESSAGE, &field))
			put_field("message", &field);
		put_list("suggestions", outcome, TAG_SUGGESTION, SUGGESTIONS_MOST, SUGGESTION_MOST);
		put_list("notes", outcome, TAG_NOTE, NOTES_MOST, NOTE_MOST);
	}
	finish();
}

void tell_uncontrolled(int status)
{
	if (!tell_wanted() || told)
		return;
	start("uncontrolled");
	put_status(status);
	finish();
}

void tell_refused(const struct wire_field *code, const struct wire_field *message)
{
	if (!tell_wanted() || told)
		return;
	start("refused");
	put_field("code", code);
	put_field("message", message);
	finish();
}

void tell_failed(const char *state, const char *words)
{
	if (!tell_wanted() || told)
		return;
	start(state);
	put_text("message", words);
	finish();
}
