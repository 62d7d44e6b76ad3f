#define _GNU_SOURCE
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tell.h"

extern char **environ;

static const char HELP[] =
	"usage: corral-exec [OPTION...] [--] COMMAND [ARG...]\n"
	"\n"
	"Run COMMAND as one tool call under Corral: in a cgroup of its own, with what it declares it needs.\n"
	"\n"
	"  --tool NAME             the tool that this call executes\n"
	"  --class CLASS           kind of command: test, build, install, git, search, data, ...\n"
	"  --memory TYPICAL[:PEAK] e.g. 300M:1G (K, M, G, T are binary); the brake is armed at PEAK; \":1G\" is a peak alone\n"
	"  --cpu CORES             e.g. 1.5\n"
	"  --pids N                processes and threads\n"
	"  --duration TIME         expected, e.g. 500ms, 30s, 5m, 2h (a bare number is seconds)\n"
	"  --deadline TIME         the call is ended after it\n"
	"  --priority N            0 (acted on first) to 100 (acted on last)\n"
	"  --network WHAT          any, none, or destinations: CIDR[:PORT],... ([V6CIDR]:PORT)\n"
	"  --gpu                   the call needs the GPU\n"
	"  --on-pressure WHAT      wait, degrade or fail-fast\n"
	"  --engine E, --conversation C   what the agent thinks on\n"
	"  --session ID            session that the call belongs to\n"
	"  --socket PATH           the broker's socket (default $XDG_RUNTIME_DIR" USER_SOCKET ",\n"
	"                          where there is one, else " DEFAULT_SOCKET ")\n"
	"  --fail open|closed      without a daemon: run uncontrolled, or not at all (default closed;\n"
	"                          " LAUNCHER_CONF " may say \"fail = open\" for calls that ask for no limit)\n"
	"  --quiet                 no lines about queueing and grants\n"
	"  --outcome-fd N          write how the call went, as one JSON object, to this descriptor (3 or higher)\n"
	"  --outcome-file PATH     the same, to a new file\n"
	"  --help, --version\n"
	"\n"
	"Every option has a variable: CORRAL_TOOL, CORRAL_MEMORY, CORRAL_ON_PRESSURE, ... An option wins over its variable.\n"
	"CORRAL_TOKEN holds the session's token. COMMAND finds the id of its call in CORRAL_CALL.\n"
	"\n"
	"Exit status: that of COMMAND, and a COMMAND that died of a signal ends corral-exec by the same signal;\n"
	"125 corral-exec failed or the call was refused, 126 COMMAND cannot be run, 127 it was not found.\n";

/* `line` gets what was said. */
static void vsay(char line[2048], const char *format, va_list args)
{
	static const char PREFIX[] = "corral-exec: ";
	size_t start = sizeof PREFIX - 1;
	int length = vsnprintf(memcpy(line, PREFIX, sizeof PREFIX) + start, 2048 - start - 1, format, args);
	size_t end = start + (length < 0 ? 0 : (size_t)length);
	ssize_t ignored;

	if (end > 2048 - 2)
		end = 2048 - 2;
	for (size_t i = 0; i < end; i++) /* what others sent must not drive the terminal */
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = ' ';
	line[end] = '\n';
	/* A stderr that is gone leaves nobody to tell. */
	ignored = write(STDERR_FILENO, line, end + 1);
	(void)ignored;
	line[end] = 0;
}

void say(const char *format, ...)
{
	char line[2048];
	va_list args;

	va_start(args, format);
	vsay(line, format, args);
	va_end(args);
}

void die(const char *format, ...)
{
	char line[2048];
	va_list args;

	va_start(args, format);
	vsay(line, format, args);
	va_end(args);
	tell_failed("failed", line);
	_exit(EXIT_LAUNCHER);
}

/* One setting, wherever it came from: `name` is "--memory" or "CORRAL_MEMORY", for messages. */
struct setting {
	const char *name;
	const char *value;
};

static double number(struct setting s, const char *text, char **end)
{
	double value;

	/* strtod also takes "inf", "nan" and hexadecimal: none of them is a size or a time. */
	if (!isdigit((unsigned char)text[0]) && text[0] != '.')
		die("%s: '%s' does not begin with a number; write e.g. 1.5, 300M or 30s", s.name, s.value);
	value = strtod(text, end);
	if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
		die("%s: '%s' is hexadecimal; write it in decimal", s.name, s.value);
	return value;
}

static double whole(struct setting s, double most)
{
	char *end;
	double value = number(s, s.value, &end);

	if (*end || value != (double)(uint64_t)value || value > most)
		die("%s: '%s' is not a whole number from 0 to %.0f", s.name, s.value, most);
	return value;
}

static uint64_t size(struct setting s, const char *text)
{
	static const char UNITS[] = "KMGT";
	char *end;
	double value = number(s, text, &end);

	if (*end) {
		const char *unit = strchr(UNITS, toupper((unsigned char)*end));

		if (unit) {
			for (const char *u = UNITS; u <= unit; u++)
				value *= 1024;
			end++;
			if (*end == 'i')
				end++;
		}
		if (*end == 'B' || *end == 'b')
			end++;
	}
	if (*end || value >= 9.2e18)
		die("%s: '%s' is not a size; write e.g. 300M or 1.5G", s.name, s.value);
	return (uint64_t)value;
}

static double seconds(struct setting s)
{
	static const struct {
		const char *unit;
		double factor;
	} UNITS[] = {{"", 1}, {"s", 1}, {"ms", 0.001}, {"m", 60}, {"h", 3600}, {"d", 86400}};
	char *end;
	double value = number(s, s.value, &end);

	for (size_t i = 0; i < sizeof UNITS / sizeof UNITS[0]; i++)
		if (strcmp(end, UNITS[i].unit) == 0)
			return value * UNITS[i].factor;
	die("%s: '%s' is not a time; write e.g. 500ms, 30s, 5m or 2h", s.name, s.value);
}

static void memory(struct setting s, struct options *options, struct wire_out *out)
{
	char typical[64];
	const char *colon = strchr(s.value, ':');
	size_t length = colon ? (size_t)(colon - s.value) : strlen(s.value);

	if (length >= sizeof typical)
		die("%s: '%.40s...' is not a size; write e.g. 300M:1G", s.name, s.value);
	memcpy(typical, s.value, length);
	typical[length] = 0;
	if (length > 0)
		wire_u64(out, TAG_MEMORY_TYPICAL, size(s, typical));
	if (colon) {
		wire_u64(out, TAG_MEMORY_PEAK, size(s, colon + 1));
		options->asks_for_limits = 1;
	}
}

/* One destination, `CIDR[:PORT]`, to the wire's `CIDR` or `CIDR PORT`. The daemon judges whether it is a network. */
static void destination(struct setting s, const char *item, size_t length, struct wire_out *out)
{
	char text[128];
	const char *cidr = text;
	char *port = NULL;

	if (length == 0 || length >= sizeof text)
		die("%s: '%s' holds an empty or overlong destination; write CIDR[:PORT],...", s.name, s.value);
	memcpy(text, item, length);
	text[length] = 0;
	if (text[0] == '[') {
		char *close = strchr(text, ']');

		if (!close || (close[1] && close[1] != ':'))
			die("%s: '%s' lacks its ']'; write [V6CIDR]:PORT", s.name, text);
		if (close[1])
			port = close + 2;
		*close = 0;
		cidr = text + 1;
	} else if (strchr(text, ':') && strchr(text, ':') == strrchr(text, ':')) {
		/* One colon: a port. Several: an IPv6 network without brackets, which has none. */
		port = strchr(text, ':') + 1;
		port[-1] = 0;
	}
	if (port) {
		char line[160];
		size_t digits = strspn(port, "0123456789");

		if (digits == 0 || digits > 5 || port[digits])
			die("%s: port '%s' is not a number from 0 to 65535", s.name, port);
		snprintf(line, sizeof line, "%s %s", cidr, port);
		wire_text(out, TAG_EGRESS, line);
	} else {
		wire_text(out, TAG_EGRESS, cidr);
	}
}

static void network(struct setting s, struct options *options, struct wire_out *out)
{
	if (strcmp(s.value, "any") == 0 || strcmp(s.value, "none") == 0) {
		wire_text(out, TAG_NETWORK, s.value);
		options->asks_for_limits |= s.value[0] == 'n';
		return;
	}
	options->asks_for_limits = 1;
	wire_text(out, TAG_NETWORK, "egress_list");
	for (const char *item = s.value;;) {
		size_t length = strcspn(item, ",");

		destination(s, item, length, out);
		if (!item[length])
			return;
		item += length + 1;
	}
}

static enum fail_policy fail_policy(const char *value)
{
	if (strcmp(value, "open") == 0)
		return FAIL_OPEN;
	return strcmp(value, "closed") == 0 ? FAIL_CLOSED : FAIL_UNSET;
}

static int is_true(struct setting s)
{
	if (strcmp(s.value, "1") == 0 || strcmp(s.value, "yes") == 0 || strcmp(s.value, "true") == 0)
		return 1;
	if (strcmp(s.value, "0") == 0 || strcmp(s.value, "no") == 0 || strcmp(s.value, "false") == 0)
		return 0;
	die("%s: '%s' is neither 1 nor 0", s.name, s.value);
}

enum option {
	O_TOOL, O_CLASS, O_MEMORY, O_CPU, O_PIDS, O_DURATION, O_DEADLINE, O_PRIORITY, O_NETWORK, O_GPU, O_ON_PRESSURE,
	O_ENGINE, O_CONVERSATION, O_SESSION, O_TOKEN, O_SOCKET, O_FAIL, O_QUIET,
	/* these two last: options_read counts on it */
	O_OUTCOME_FD, O_OUTCOME_FILE, O_COUNT
};

/* The names; the variable is CORRAL_ and the name in capitals with _ for -. */
static const struct {
	const char *name;
	int is_switch;
	int variable_only; /* a token on a command line could be read by every user of the host */
} OPTIONS[O_COUNT] = {
	[O_TOOL] = {"tool", 0, 0},
	[O_CLASS] = {"class", 0, 0},
	[O_MEMORY] = {"memory", 0, 0},
	[O_CPU] = {"cpu", 0, 0},
	[O_PIDS] = {"pids", 0, 0},
	[O_DURATION] = {"duration", 0, 0},
	[O_DEADLINE] = {"deadline", 0, 0},
	[O_PRIORITY] = {"priority", 0, 0},
	[O_NETWORK] = {"network", 0, 0},
	[O_GPU] = {"gpu", 1, 0},
	[O_ON_PRESSURE] = {"on-pressure", 0, 0},
	[O_ENGINE] = {"engine", 0, 0},
	[O_CONVERSATION] = {"conversation", 0, 0},
	[O_SESSION] = {"session", 0, 0},
	[O_TOKEN] = {"token", 0, 1},
	[O_SOCKET] = {"socket", 0, 0},
	[O_FAIL] = {"fail", 0, 0},
	[O_QUIET] = {"quiet", 1, 0},
	[O_OUTCOME_FD] = {"outcome-fd", 0, 0},
	[O_OUTCOME_FILE] = {"outcome-file", 0, 0},
};

static void apply(enum option which, struct setting s, struct options *options, struct wire_out *out)
{
	char *end;

	switch (which) {
	case O_TOOL: wire_text(out, TAG_TOOL, s.value); break;
	case O_CLASS: wire_text(out, TAG_CLASS, s.value); break;
	case O_MEMORY: memory(s, options, out); break;
	case O_CPU: {
		double cores = number(s, s.value, &end);

		if (*end)
			die("%s: '%s' is not a number of cores; write e.g. 1.5", s.name, s.value);
		wire_f64(out, TAG_CPU, cores);
		options->asks_for_limits = 1;
		break;
	}
	case O_PIDS:
		wire_u32(out, TAG_PIDS, (uint32_t)whole(s, UINT32_MAX));
		options->asks_for_limits = 1;
		break;
	case O_DURATION: wire_f64(out, TAG_DURATION, seconds(s)); break;
	case O_DEADLINE: wire_f64(out, TAG_DEADLINE, seconds(s)); break;
	case O_PRIORITY: wire_u8(out, TAG_PRIORITY, (uint8_t)whole(s, 100)); break;
	case O_NETWORK: network(s, options, out); break;
	case O_GPU: wire_u8(out, TAG_GPU, (uint8_t)is_true(s)); break;
	case O_ON_PRESSURE:
		if (strcmp(s.value, "wait") && strcmp(s.value, "degrade") && strcmp(s.value, "fail-fast") &&
		    strcmp(s.value, "fail_fast"))
			die("%s: '%s' is unknown; choose wait, degrade or fail-fast", s.name, s.value);
		wire_text(out, TAG_ON_PRESSURE, s.value[0] == 'f' ? "fail_fast" : s.value);
		break;
	case O_ENGINE: wire_text(out, TAG_ENGINE, s.value); break;
	case O_CONVERSATION: wire_text(out, TAG_CONVERSATION, s.value); break;
	case O_SESSION: wire_text(out, TAG_SESSION, s.value); break;
	case O_TOKEN: wire_text(out, TAG_TOKEN, s.value); break;
	case O_SOCKET: options->socket_path = s.value; break;
	case O_FAIL:
		options->fail = fail_policy(s.value);
		if (options->fail == FAIL_UNSET)
			die("%s: '%s' is unknown; choose open or closed", s.name, s.value);
		break;
	case O_QUIET: options->quiet = is_true(s); break;
	case O_OUTCOME_FD:
		options->outcome_fd = (int)whole(s, 1 << 20);
		if (options->outcome_fd <= STDERR_FILENO)
			die("%s: %s is a stream of the command's own; open another descriptor for the outcome", s.name, s.value);
		break;
	case O_OUTCOME_FILE: options->outcome_file = s.value; break;
	case O_COUNT: break;
	}
}

static void variable_name(enum option which, char *name, size_t room)
{
	size_t at = (size_t)snprintf(name, room, "CORRAL_");

	for (const char *c = OPTIONS[which].name; *c && at + 1 < room; c++)
		name[at++] = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
	name[at] = 0;
}

/* As agentd/sockets.py. */
static const char *default_socket(void)
{
	static char own[108]; /* sun_path: a longer one could not be connected to */
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	struct stat found;

	if (!runtime || runtime[0] != '/' || strlen(runtime) + sizeof USER_SOCKET > sizeof own)
		return DEFAULT_SOCKET;
	strcat(strcpy(own, runtime), USER_SOCKET);
	return stat(own, &found) || found.st_uid != geteuid() ? DEFAULT_SOCKET : own;
}

void options_read(struct options *options, struct wire_out *begin, int argc, char **argv)
{
	const char *given[O_COUNT] = {0};
	static char names[O_COUNT][32];
	int at = 1;

	memset(options, 0, sizeof *options);
	options->socket_path = default_socket();
	options->outcome_fd = -1;
	for (; at < argc && argv[at][0] == '-' && argv[at][1]; at++) {
		const char *word = argv[at];
		const char *equals = strchr(word, '=');
		size_t length = equals ? (size_t)(equals - word) : strlen(word);
		enum option which = 0;

		if (strcmp(word, "--") == 0) {
			at++;
			break;
		}
		if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
			fputs(HELP, stdout);
			exit(fflush(stdout) ? EXIT_LAUNCHER : 0);
		}
		if (strcmp(word, "--version") == 0) {
			puts("corral-exec " CORRAL_VERSION);
			exit(fflush(stdout) ? EXIT_LAUNCHER : 0);
		}
		while (which < O_COUNT && (strncmp(word, "--", 2) != 0 || strlen(OPTIONS[which].name) != length - 2 ||
					   strncmp(OPTIONS[which].name, word + 2, length - 2) != 0))
			which++;
		if (which == O_COUNT)
			die("option '%s' is unknown; 'corral-exec --help' lists them, '--' ends them", word);
		if (OPTIONS[which].variable_only)
			die("a token on the command line could be read by others; set CORRAL_TOKEN instead");
		if (equals)
			given[which] = equals + 1;
		else if (OPTIONS[which].is_switch)
			given[which] = "1";
		else if (at + 1 < argc)
			given[which] = argv[++at];
		else
			die("option '%s' lacks its value; see 'corral-exec --help'", word);
		snprintf(names[which], sizeof names[which], "--%s", OPTIONS[which].name);
	}
	if (at >= argc)
		die("no command; usage: corral-exec [OPTION...] [--] COMMAND [ARG...]");
	options->command = argv + at;

	/* One pass over the environment instead of a getenv for each option: an agent's environment can be large. */
	for (char **variable = environ; *variable; variable++) {
		const char *value;

		if (strncmp(*variable, "CORRAL_", 7) != 0 || !(value = strchr(*variable, '=')) || !value[1])
			continue;
		for (enum option which = 0; which < O_COUNT; which++) {
			char name[32];

			variable_name(which, name, sizeof name);
			if (given[which] || strlen(name) != (size_t)(value - *variable) ||
			    strncmp(name, *variable, strlen(name)) != 0)
				continue;
			given[which] = value + 1;
			memcpy(names[which], name, sizeof name);
		}
	}
	/* First, so that what is wrong with the others is told as well. */
	for (enum option which = O_OUTCOME_FD; which <= O_OUTCOME_FILE; which++)
		if (given[which])
			apply(which, (struct setting){names[which], given[which]}, options, begin);
	if (options->outcome_fd >= 0 && options->outcome_file)
		die("both an outcome descriptor and an outcome file were named; name one of them");
	if (tell_to(options->outcome_fd, options->outcome_file) != 0)
		die("descriptor %d, for the outcome, is not open: %s; open it before corral-exec is started",
		    options->outcome_fd, strerror(errno));
	for (enum option which = 0; which < O_OUTCOME_FD; which++)
		if (given[which])
			apply(which, (struct setting){names[which], given[which]}, options, begin);
	wire_argv(begin, options->command);
	if (begin->overflow)
		die("what was declared does not fit in one message of %d bytes; shorten the options or CORRAL_* variables",
		    WIRE_MAX);
}

int options_fail_open(const struct options *options)
{
	FILE *file;
	char line[256], word[16];
	int open = 0;

	if (options->fail != FAIL_UNSET)
		return options->fail == FAIL_OPEN;
	/* A host-wide "open" must not undo a limit that this call asked for: that takes an explicit --fail open. */
	if (options->asks_for_limits)
		return 0;
	file = fopen(LAUNCHER_CONF, "re");
	if (!file)
		return 0;
	while (fgets(line, sizeof line, file)) {
		char *c = line + strspn(line, " \t");

		if (*c == '#' || *c == '\n' || !*c)
			continue;
		if (sscanf(c, "fail = %15s", word) != 1 || fail_policy(word) == FAIL_UNSET) {
			say("%s: line '%.*s' is not 'fail = open' or 'fail = closed'; the call fails closed", LAUNCHER_CONF,
			    (int)strcspn(c, "\n"), c);
			open = 0;
			break;
		}
		open = fail_policy(word) == FAIL_OPEN;
	}
	fclose(file);
	return open;
}
