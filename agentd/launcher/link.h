/* The launcher's end of the broker's socket, and the child's way into its command. */
#ifndef CORRAL_LINK_H
#define CORRAL_LINK_H

#include <signal.h>
#include <sys/types.h>

#include "options.h"
#include "wire.h"

/* What the child tells the launcher, once, over a pipe, before it execs (or gives up). */
enum report_kind {
	REPORT_GRANTED = 1, /* the call has begun; from now on the socket is the launcher's alone */
	REPORT_UNCONTROLLED, /* no daemon, and configured to run all the same */
	REPORT_LOST, /* the daemon went away before it answered: worth another attempt */
};

struct report {
	enum report_kind kind;
	char call[WIRE_ID_MAX];
};

/* A CLOEXEC descriptor above stderr. The caller may have closed 0, 1 or 2: ours must not land there, where the tool
 * would read or write it. Takes over `fd`; ends the process when there are none left. */
int above_stdio(int fd);

/* An unconnected SOCK_SEQPACKET socket (`flags`: SOCK_NONBLOCK or 0); ends the process when there is none to be had. */
int link_socket(int flags);
/* 0, or -1 with errno. A connect without SOCK_NONBLOCK is bounded by ANSWER_SECONDS. */
int link_connect(int sock, const char *path);
/* Send one packet, with `fd` beside it unless negative. 0, or -1 with errno. */
int link_send(int sock, const struct wire_out *out, int fd);

/* The child: connect, BEGIN, wait for the answer, report, exec. `again`: an earlier attempt lost the daemon while it
 * waited, so that a missing daemon is reported as lost too. Never returns. */
_Noreturn void child_begin(const struct options *options, const struct wire_out *begin, int sock, int report_fd,
			   pid_t launcher, int again);

#endif
