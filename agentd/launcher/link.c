#define _GNU_SOURCE
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "tell.h"

extern char **environ;

/* A daemon that works answers in about a millisecond, or with QUEUED. */
#define ANSWER_SECONDS 10

int above_stdio(int fd)
{
	int higher = fd;

	if (fd >= 0 && fd <= STDERR_FILENO) {
		higher = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
		close(fd);
	}
	if (higher < 0)
		die("cannot open a descriptor: %s; raise 'ulimit -n' or close some", strerror(errno));
	return higher;
}

int link_socket(int flags)
{
	return above_stdio(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0));
}

int link_connect(int sock, const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t length = strlen(path);

	if (length >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(address.sun_path, path, length + 1);
	return connect(sock, (struct sockaddr *)&address, sizeof address);
}

int link_send(int sock, const struct wire_out *out, int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec data = {(void *)out->bytes, out->length};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
	ssize_t sent;

	if (fd >= 0) {
		struct cmsghdr *header;

		memset(&control, 0, sizeof control);
		message.msg_control = control.bytes;
		message.msg_controllen = sizeof control.bytes;
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof fd);
	}
	do
		sent = sendmsg(sock, &message, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -1 : 0;
}

static void set_timeouts(int sock, int seconds)
{
	struct timeval bound = {.tv_sec = seconds};

	/* A bound that cannot be set leaves a wait without one, no wrong answer. SO_SNDTIMEO bounds connect(), too. */
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof bound);
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof bound);
}

/* Replace this process as execvp(3) would, whatever the libc; returns on failure alone, with errno. */
static void run_file(const char *file, char **argv)
{
	execve(file, argv, environ);
	if (errno == ENOEXEC) { /* a script without "#!": POSIX has execvp hand it to the shell */
		size_t count = 0;
		char **shell;

		while (argv[count])
			count++;
		shell = calloc(count + 2, sizeof *shell);
		if (!shell)
			return;
		shell[0] = "sh";
		shell[1] = (char *)file;
		if (count > 1)
			memcpy(shell + 2, argv + 1, (count - 1) * sizeof *shell);
		execve("/bin/sh", shell, environ);
	}
}

static void run_command(char **argv)
{
	const char *path = getenv("PATH");
	int denied = 0;
	char file[4096];

	if (!*argv[0]) {
		errno = ENOENT;
		return;
	}
	if (strchr(argv[0], '/')) {
		run_file(argv[0], argv);
		return;
	}
	for (const char *at = path ? path : "/usr/local/bin:/bin:/usr/bin";; at++) {
		size_t length = strcspn(at, ":");
		int written = snprintf(file, sizeof file, "%.*s%s%s", (int)length, at, length ? "/" : "", argv[0]);

		if (written > 0 && (size_t)written < sizeof file) {
			run_file(file, argv);
			if (errno == EACCES)
				denied = 1;
			else if (errno != ENOENT && errno != ENOTDIR)
				return;
		}
		at += length;
		if (!*at)
			break;
	}
	errno = denied ? EACCES : ENOENT;
}

_Noreturn static void exec_command(const struct options *options)
{
	int missing;

	if (tell_wanted()) {
		/* Of this call alone: a corral-exec inside it must not find a closed descriptor, or another's, under it. */
		unsetenv("CORRAL_OUTCOME_FD");
		unsetenv("CORRAL_OUTCOME_FILE");
	}
	run_command(options->command);
	missing = errno == ENOENT;
	say("cannot run '%s': %s; give a command on PATH or the path of an executable", options->command[0],
	    strerror(errno));
	_exit(missing ? EXIT_NOT_FOUND : EXIT_CANNOT_RUN);
}

static void report(int fd, enum report_kind kind, const struct wire_field *call)
{
	struct report report = {.kind = kind};
	ssize_t written;

	if (call)
		memcpy(report.call, call->data, call->length);
	do /* one write of less than PIPE_BUF: whole or not at all */
		written = write(fd, &report, sizeof report);
	while (written < 0 && errno == EINTR);
	if (written < 0)
		_exit(EXIT_LAUNCHER); /* the launcher is gone: nobody waits for this call */
}

/* No daemon to ask: run uncontrolled where that was configured, else end with words. */
_Noreturn static void no_daemon(const struct options *options, int report_fd, const char *what, int error)
{
	const char *cause = error ? strerror(error) : "it did not answer";
	const char *remedy = "start agentd, or name its socket with --socket or CORRAL_SOCKET";

	if (error == EACCES)
		remedy = "ask the operator for access to the socket";
	if (!options_fail_open(options)) {
		char words[512];

		snprintf(words, sizeof words, "cannot %s the daemon at %s: %s; %s", what, options->socket_path, cause,
			 remedy);
		say("cannot %s the daemon at %s: %s; %s; '--fail open' would run the command uncontrolled", what,
		    options->socket_path, cause, remedy);
		tell_failed("no_daemon", words);
		_exit(EXIT_LAUNCHER);
	}
	say("cannot %s the daemon at %s: %s; running '%s' UNCONTROLLED, as --fail open asks; %s", what,
	    options->socket_path, cause, options->command[0], remedy);
	report(report_fd, REPORT_UNCONTROLLED, NULL);
	unsetenv("CORRAL_CALL"); /* an outer call's id would be a lie */
	exec_command(options);
}

_Noreturn static void lost(int report_fd)
{
	report(report_fd, REPORT_LOST, NULL);
	_exit(EXIT_LAUNCHER);
}

static int field_text(const struct wire_field *field)
{
	return field->length > 2000 ? 2000 : (int)field->length;
}

static void on_queued(const struct options *options, const struct wire_in *in, int sock, pid_t launcher)
{
	struct wire_field field;
	char eta[64] = "";
	double seconds;

	/* Unlike the wait for an answer, a wait in the queue may be long: it needs no bound (Ctrl-C cancels it), and a
	 * child whose launcher was killed must not stay in the queue for it. */
	set_timeouts(sock, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != launcher)
		_exit(EXIT_LAUNCHER);
	if (options->quiet)
		return;
	if (wire_find(in, TAG_ETA, &field) && field.length == sizeof seconds) {
		memcpy(&seconds, field.data, sizeof seconds);
		if (seconds >= 0)
			snprintf(eta, sizeof eta, " (about %.0f s)", seconds);
	}
	if (!wire_find(in, TAG_MESSAGE, &field))
		field.length = 0;
	say("queued%s%s%.*s; Ctrl-C cancels", eta, field.length ? ": " : "", field_text(&field),
	    field.length ? (const char *)field.data : "");
}

_Noreturn static void on_granted(const struct options *options, const struct wire_in *in, int report_fd)
{
	struct wire_in fields = *in;
	struct wire_field call, field;
	char id[WIRE_ID_MAX];

	if (!wire_find(in, TAG_CALL, &call) || call.length == 0 || call.length >= sizeof id ||
	    memchr(call.data, 0, call.length))
		die("the daemon's grant names no call; is it of another version than this corral-exec " CORRAL_VERSION "?");
	memcpy(id, call.data, call.length);
	id[call.length] = 0;
	if (!options->quiet)
		while (wire_next(&fields, &field) == 1)
			if (field.tag == TAG_NOTE)
				say("note: %.*s", field_text(&field), (const char *)field.data);
	if (setenv("CORRAL_CALL", id, 1) != 0)
		die("cannot set CORRAL_CALL: %s", strerror(errno));
	report(report_fd, REPORT_GRANTED, &call);
	exec_command(options);
}

static void send_begin(const struct options *options, const struct wire_out *begin, int sock, int report_fd, int again)
{
	int pidfd;

	if (link_connect(sock, options->socket_path) != 0) {
		if (again && (errno == ENOENT || errno == ECONNREFUSED))
			lost(report_fd);
		no_daemon(options, report_fd, "reach", errno == EAGAIN ? 0 : errno);
	}
	pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (pidfd < 0)
		die("cannot open a pidfd of the child: %s; Linux 5.3 or later is needed", strerror(errno));
	/* A send to a broker that refused and closed already fails, but its REFUSED is there to be read. */
	if (link_send(sock, begin, pidfd) != 0 && errno != EPIPE && errno != ECONNRESET)
		no_daemon(options, report_fd, "ask", errno == EAGAIN ? 0 : errno);
	close(pidfd);
}

_Noreturn void child_begin(const struct options *options, const struct wire_out *begin, int sock, int report_fd,
			   pid_t launcher, int again)
{
	static unsigned char packet[WIRE_MAX];
	int resets = 0, queued = 0;

	set_timeouts(sock, ANSWER_SECONDS);
	send_begin(options, begin, sock, report_fd, again);
	for (;;) {
		ssize_t length = recv(sock, packet, sizeof packet, 0);
		struct wire_field code, message;
		struct wire_in in;

		if (length < 0 && errno == EINTR)
			continue;
		/* A peer that closed with our message unread raises ECONNRESET once, before what it sent can be read. */
		if (length < 0 && errno == ECONNRESET && resets++ == 0)
			continue;
		if (length < 0 && errno == EAGAIN)
			no_daemon(options, report_fd, "get an answer from", 0);
		if (length <= 0)
			lost(report_fd);
		if (wire_open(&in, packet, (size_t)length) != 0)
			die("%s is no broker of Corral (its answer is of another protocol); check --socket and CORRAL_SOCKET",
			    options->socket_path);
		switch (in.type) {
		case WIRE_QUEUED:
			if (!queued++)
				on_queued(options, &in, sock, launcher);
			break;
		case WIRE_GRANT:
			if (queued)
				prctl(PR_SET_PDEATHSIG, 0);
			on_granted(options, &in, report_fd);
		case WIRE_REFUSED:
			if (!wire_find(&in, TAG_CODE, &code))
				code.length = 0;
			if (!wire_find(&in, TAG_MESSAGE, &message))
				message.length = 0;
			say("the call was refused (%.*s): %.*s", field_text(&code), code.length ? (const char *)code.data : "",
			    field_text(&message), message.length ? (const char *)message.data : "");
			tell_refused(&code, &message);
			_exit(EXIT_LAUNCHER);
		default:
			break; /* of a newer daemon */
		}
	}
}
