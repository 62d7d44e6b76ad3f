/* What the caller asked for: options on the command line, then CORRAL_* variables, then the defaults. */
#ifndef CORRAL_OPTIONS_H
#define CORRAL_OPTIONS_H

#include "wire.h"

#define CORRAL_VERSION "0.1.0"
#define DEFAULT_SOCKET "/run/corral/broker.sock"
#define USER_SOCKET "/corral/broker.sock" /* below XDG_RUNTIME_DIR: the user's own daemon, where there is one */
#define LAUNCHER_CONF "/etc/corral/launcher.conf"
#define EXIT_LAUNCHER 125 /* the launcher failed or was refused, as env(1), docker and timeout have it */
#define EXIT_CANNOT_RUN 126
#define EXIT_NOT_FOUND 127

enum fail_policy { FAIL_UNSET, FAIL_OPEN, FAIL_CLOSED };

struct options {
	const char *socket_path;
	enum fail_policy fail;
	int quiet;
	const char *outcome_file; /* NULL: not asked for; see tell.h */
	int outcome_fd; /* -1: not asked for */
	int asks_for_limits; /* something that only the kernel can enforce: memory peak, CPU, processes, network */
	char **command;
};

/* Fill `options`, and write the intent's fields, SESSION and TOKEN into `begin` (a started BEGIN). Ends the process on
 * --help and --version, and with EXIT_LAUNCHER and words on stderr when something is wrong. */
void options_read(struct options *options, struct wire_out *begin, int argc, char **argv);

/* Whether a call without a daemon runs all the same. Reads LAUNCHER_CONF when neither option nor variable said. */
int options_fail_open(const struct options *options);

/* "corral-exec: ..." on stderr, one write. die() also tells it to who asked for the outcome. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
