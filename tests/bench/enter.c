/* Becomes a process of the session whose token is in CORRAL_TOKEN, then executes a program: what `corral session exec`
 * does, without the half second of a Python's start.
 *
 *   enter PROGRAM [ARGUMENT...]
 *
 * One ENTER message to CORRAL_SOCKET with our own pidfd (docs/architecture.md, the broker's protocol); 125: refused.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define REFUSED 125
#define ENTER 11
#define OK 12
#define TOKEN 2

static int fail(const char *what)
{
	perror(what);
	return REFUSED;
}

int main(int argc, char **argv)
{
	const char *path = getenv("CORRAL_SOCKET"), *token = getenv("CORRAL_TOKEN");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct __attribute__((packed)) {
		char magic[4];
		uint16_t type, flags, tag, zero;
		uint32_t length;
		char text[256];
	} message = {.magic = {'C', 'R', 'L', '1'}, .type = ENTER, .tag = TOKEN}, answer;
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct iovec part = {.iov_base = &message};
	struct msghdr packet = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.room};
	int fd, self;

	if (argc < 2 || !path || !token || strlen(path) >= sizeof address.sun_path ||
	    strlen(token) > sizeof message.text) {
		fprintf(stderr, "usage: enter PROGRAM [ARGUMENT...], with CORRAL_SOCKET and CORRAL_TOKEN\n");
		return 2;
	}
	strcpy(address.sun_path, path);
	message.length = (uint32_t)strlen(token);
	memcpy(message.text, token, message.length);
	part.iov_len = sizeof message - sizeof message.text + message.length;
	self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (self < 0 || fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
		return fail("enter: the broker");
	memcpy(CMSG_DATA(&control.header), &self, sizeof self);
	if (sendmsg(fd, &packet, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < 8)
		return fail("enter: the broker");
	if (answer.type != OK) {
		fprintf(stderr, "enter: the broker answered with a message of type %u\n", answer.type);
		return REFUSED;
	}
	close(self);
	execv(argv[1], argv + 1);
	return fail(argv[1]);
}
