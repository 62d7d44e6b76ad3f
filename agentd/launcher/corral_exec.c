/* corral-exec: run a command as one tool call.
 *
 * The launcher makes a socket and forks; the child connects it, asks the broker for a grant and execs (link.c). The
 * launcher stays for as long as the child lives: its open socket is what tells the daemon that somebody waits for the call.
 * fork, not vfork: a queued child must not suspend its launcher (Ctrl-Z, signals), and for a static program as small as
 * this fork costs 0.05 ms more. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "link.h"
#include "options.h"
#include "tell.h"
#include "wire.h"

#define OUTCOME_MS 2000 /* how long a failed call waits for its outcome */
#define RESUME_MS 1000	/* how long an ended call tries to reach a daemon that went away */
#define REBEGIN_MS 10000 /* how long a call that lost its place in the queue tries to get another */
#define BACKOFF_MS 50
#define BACKOFF_MOST_MS 2000
#define TSTP_CHECK_MS 150

struct launcher {
	struct options options;
	sigset_t mask; /* the caller's */
	struct sigaction chld; /* the caller's */
	int restore_chld;
	int sigfd;
	int sock; /* -1: no daemon at the moment */
	int report_fd; /* -1: read already */
	pid_t child;
	char call[WIRE_ID_MAX]; /* "": not granted */
	int uncontrolled, lost, gave_up, acted;
	int status; /* of the child, once it has ended */
	int child_stopped; /* by SIGSTOP, which is the brake's, not the terminal's */
	long long reconnect_at, backoff; /* ms */
	long long tstp_at; /* when to look whether Ctrl-Z reached a child that is held; 0: no */
};

static struct wire_out begin_message;
static unsigned char packet[WIRE_MAX];

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* End as the child ended, so that the caller's own waitpid tells the truth. */
_Noreturn static void end_as(int status)
{
	int number = WTERMSIG(status);
	struct rlimit none = {0, 0};
	sigset_t one;

	if (!WIFSIGNALED(status))
		_exit(WEXITSTATUS(status));
	/* The core, if any, was the child's. A core_pattern with a pipe ignores the limit, hence also the other. */
	setrlimit(RLIMIT_CORE, &none);
	prctl(PR_SET_DUMPABLE, 0);
	signal(number, SIG_DFL);
	sigemptyset(&one);
	sigaddset(&one, number);
	kill(getpid(), number);
	sigprocmask(SIG_UNBLOCK, &one, NULL);
	_exit(128 + number);
}

/* Stop as the child was stopped, so that the shell gets its terminal back; returns when continued. */
static void stop_as(int number)
{
	struct sigaction mine = {.sa_handler = SIG_DFL}, old;
	sigset_t one;

	sigaction(number, &mine, &old);
	sigemptyset(&one);
	sigaddset(&one, number);
	kill(getpid(), number);
	sigprocmask(SIG_UNBLOCK, &one, NULL);
	sigprocmask(SIG_BLOCK, &one, NULL);
	sigaction(number, &old, NULL);
}

/* The child's state changed? 1 when it has ended, with its status. */
static int reap(struct launcher *l, int *status)
{
	pid_t pid;

	while ((pid = waitpid(l->child, status, WNOHANG | WUNTRACED | WCONTINUED)) == l->child) {
		if (WIFEXITED(*status) || WIFSIGNALED(*status))
			return 1;
		if (WIFCONTINUED(*status)) {
			l->child_stopped = 0;
			continue;
		}
		l->tstp_at = 0;
		/* SIGSTOP is the brake (or a person who means the child alone): the daemon will resume it, and a shell
		 * that was told would take the job for suspended. */
		if (WSTOPSIG(*status) == SIGSTOP)
			l->child_stopped = 1;
		else
			stop_as(WSTOPSIG(*status));
	}
	if (pid < 0 && errno != EINTR)
		die("lost sight of the command: waitpid: %s; this is a defect of corral-exec, please report it", strerror(errno));
	return 0;
}

/* Whether a SIGTSTP waits in the child because it is frozen or braked and cannot act on it. */
static int tstp_is_pending(pid_t child)
{
	char path[64], line[256];
	unsigned long long pending = 0, blocked = 0;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/status", (int)child);
	file = fopen(path, "re");
	if (!file)
		return 0; /* it has ended: SIGCHLD says so */
	while (fgets(line, sizeof line, file)) {
		if (sscanf(line, "ShdPnd: %llx", &pending) != 1)
			sscanf(line, "SigBlk: %llx", &blocked);
	}
	fclose(file);
	return (pending & ~blocked) >> (SIGTSTP - 1) & 1;
}

/* What the terminal sends reaches the child by itself, as both are in one process group; what somebody sent to the launcher
 * alone is passed on. */
static void on_signal(struct launcher *l, const struct signalfd_siginfo *info)
{
	int number = (int)info->ssi_signo;

	if (number == SIGTSTP && info->ssi_code > 0) {
		if (l->child_stopped)
			stop_as(SIGTSTP);
		else
			l->tstp_at = now_ms() + TSTP_CHECK_MS;
		return;
	}
	/* A timer that the caller had running (alarm() survives exec, not fork) is the tool's. */
	if (info->ssi_code > 0 && number != SIGALRM)
		return;
	/* The child's own "kill 0" reached the child already. */
	if ((pid_t)info->ssi_pid == l->child && info->ssi_code <= 0)
		return;
	/* A failure means that the child became somebody else's (set-uid): then the sender could not have done it either. */
	if (info->ssi_code == SI_QUEUE)
		sigqueue(l->child, number, (union sigval){.sival_ptr = (void *)(uintptr_t)info->ssi_ptr});
	else
		kill(l->child, number);
}

/* Read what is pending. 1 when the child has ended, with its status. */
static int read_signals(struct launcher *l, int *status)
{
	struct signalfd_siginfo infos[8];
	ssize_t length;
	int ended = 0;

	while ((length = read(l->sigfd, infos, sizeof infos)) > 0) {
		for (size_t i = 0; i < (size_t)length / sizeof *infos; i++) {
			if (infos[i].ssi_signo == SIGCHLD)
				ended |= reap(l, status);
			else if (!ended)
				on_signal(l, &infos[i]);
		}
		if (ended)
			return 1;
	}
	return 0;
}

static void drop_link(struct launcher *l)
{
	close(l->sock);
	l->sock = -1;
	/* Spread by pid: a thousand launchers must not come back in the same millisecond. */
	l->backoff = BACKOFF_MS;
	l->reconnect_at = now_ms() + BACKOFF_MS + getpid() % BACKOFF_MS;
}

/* One attempt to take the call up again with a (new) daemon; never blocks. `alive`: the child can still be named. */
static void resume(struct launcher *l, int alive)
{
	struct wire_out *out = &begin_message; /* BEGIN is over: its buffer is free */
	int pidfd = -1;

	l->sock = link_socket(SOCK_NONBLOCK);
	wire_start(out, WIRE_RESUME);
	wire_text(out, TAG_CALL, l->call);
	if (alive)
		pidfd = (int)syscall(SYS_pidfd_open, l->child, 0);
	if (link_connect(l->sock, l->options.socket_path) != 0 || link_send(l->sock, out, pidfd) != 0) {
		long long backoff = l->backoff * 2;

		drop_link(l);
		l->backoff = backoff > BACKOFF_MOST_MS ? BACKOFF_MOST_MS : backoff;
		l->reconnect_at = now_ms() + l->backoff;
	}
	if (pidfd >= 0)
		close(pidfd);
}

/* Read what the daemon sent, without blocking. 1 when `outcome` was filled. */
static int read_link(struct launcher *l, struct wire_in *outcome)
{
	while (l->sock >= 0) {
		ssize_t length = recv(l->sock, packet, sizeof packet, MSG_DONTWAIT);
		struct wire_in in;

		if (length < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (length <= 0 || wire_open(&in, packet, (size_t)length) != 0) {
			drop_link(l);
			return 0;
		}
		if (in.type == WIRE_ACTED)
			l->acted = 1;
		if (in.type == WIRE_REFUSED) { /* of a RESUME: this daemon does not know the call, and will not */
			l->gave_up = 1;
			drop_link(l);
		}
		if (in.type == WIRE_OUTCOME && outcome) {
			*outcome = in;
			return 1;
		}
	}
	return 0;
}

static void read_report(struct launcher *l)
{
	struct report report;
	ssize_t length = read(l->report_fd, &report, sizeof report);

	if (length < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	close(l->report_fd);
	l->report_fd = -1;
	if (length != (ssize_t)sizeof report)
		return; /* it ended without a word here: SIGCHLD says how */
	l->lost = report.kind == REPORT_LOST;
	l->uncontrolled = report.kind == REPORT_UNCONTROLLED;
	if (report.kind == REPORT_GRANTED)
		memcpy(l->call, report.call, sizeof l->call);
	else
		close(l->sock), l->sock = -1;
}

static int timeout_until(long long at)
{
	long long left = at - now_ms();

	return left < 0 ? 0 : left > 60000 ? 60000 : (int)left;
}

/* Wait until the child has ended; its wait status. */
static int wait_for_child(struct launcher *l)
{
	int status = 0;

	for (;;) {
		int granted = l->call[0] != 0, timeout = -1;
		struct pollfd fds[3] = {
			{.fd = l->sigfd, .events = POLLIN},
			{.fd = l->report_fd, .events = POLLIN},
			/* Before the report the child is the one to read. */
			{.fd = granted ? l->sock : -1, .events = POLLIN},
		};

		if (granted && l->sock < 0 && !l->gave_up)
			timeout = timeout_until(l->reconnect_at);
		if (l->tstp_at && (timeout < 0 || timeout_until(l->tstp_at) < timeout))
			timeout = timeout_until(l->tstp_at);
		if (poll(fds, 3, timeout) < 0 && errno != EINTR && errno != EAGAIN)
			die("cannot wait for the command: poll: %s; free some memory", strerror(errno));
		if (fds[1].revents)
			read_report(l);
		if (fds[0].revents && read_signals(l, &status))
			break;
		if (fds[2].revents)
			read_link(l, NULL);
		if (granted && l->sock < 0 && !l->gave_up && now_ms() >= l->reconnect_at)
			resume(l, 1);
		if (l->tstp_at && now_ms() >= l->tstp_at) {
			l->tstp_at = 0;
			if (tstp_is_pending(l->child))
				stop_as(SIGTSTP);
		}
	}
	if (l->report_fd >= 0)
		read_report(l); /* a report and the end may come together */
	return status;
}

/* Sleep for `ms`, or less when the socket (where given) has something. 1 when a signal asks to stop waiting. */
static int pause_ms(struct launcher *l, long long ms, int sock)
{
	struct pollfd fds[2] = {{.fd = l->sigfd, .events = POLLIN}, {.fd = sock, .events = POLLIN}};
	struct signalfd_siginfo info;

	poll(fds, 2, ms < 0 ? 0 : (int)ms);
	while (fds[0].revents && read(l->sigfd, &info, sizeof info) == (ssize_t)sizeof info)
		if (info.ssi_signo == SIGINT || info.ssi_signo == SIGTERM || info.ssi_signo == SIGQUIT ||
		    info.ssi_signo == SIGHUP)
			return (int)info.ssi_signo;
	return 0;
}

static void print_outcome(const struct wire_in *outcome)
{
	static const char PREFIX[] = "corral: ";
	struct wire_field message;
	size_t start = sizeof PREFIX - 1, length;
	unsigned char *text = begin_message.bytes;
	ssize_t ignored;

	if (!wire_find(outcome, TAG_MESSAGE, &message) || message.length == 0)
		return;
	length = message.length > WIRE_MAX - start - 1 ? WIRE_MAX - start - 1 : message.length;
	memcpy(text, PREFIX, start);
	memcpy(text + start, message.data, length);
	length += start;
	for (size_t i = start; i < length; i++) /* what it quotes must not drive the terminal */
		if ((text[i] < 0x20 && text[i] != '\n') || text[i] == 0x7f)
			text[i] = ' ';
	text[length++] = '\n';
	ignored = write(STDERR_FILENO, text, length); /* one write: not mixed with others' lines */
	(void)ignored;
}

/* Wait for OUTCOME until `deadline` and print it. 0 when the daemon went away first: it may not have seen the END. */
static int await_outcome(struct launcher *l, long long deadline)
{
	struct wire_in outcome;

	while (l->sock >= 0) {
		if (read_link(l, &outcome)) {
			print_outcome(&outcome);
			tell_ended(l->call, l->status, &outcome);
			return 1;
		}
		if (l->gave_up || now_ms() >= deadline || (l->sock >= 0 && pause_ms(l, deadline - now_ms(), l->sock)))
			return 1;
	}
	return 0;
}

/* Tell the daemon how the child ended and, where there may be something to say, wait for it and print it. Bounded: a
 * daemon that hangs or is gone never holds the tool's result back for long. */
static void report_end(struct launcher *l, int status)
{
	long long resume_until = now_ms() + RESUME_MS, outcome_until = now_ms() + OUTCOME_MS;
	int want;

	read_link(l, NULL); /* ACTED may have come since */
	want = status != 0 || l->acted || tell_wanted();
	l->status = status;
	while (!l->gave_up) {
		if (l->sock < 0)
			resume(l, 0);
		if (l->sock >= 0) {
			wire_start(&begin_message, WIRE_END);
			wire_u32(&begin_message, TAG_STATUS, (uint32_t)status);
			wire_u8(&begin_message, TAG_WANT, (uint8_t)want);
			if (link_send(l->sock, &begin_message, -1) != 0)
				drop_link(l);
			else if (!want || await_outcome(l, outcome_until))
				return;
		}
		/* For a call that went well the daemon will find the empty leaf by itself: not worth anybody's time. */
		if (!want || now_ms() >= resume_until || pause_ms(l, BACKOFF_MS, -1))
			return;
	}
}

/* Fork the child and wait for its end. */
static int attempt(struct launcher *l, int again)
{
	int report_pipe[2];
	pid_t launcher = getpid();
	sigset_t watched;

	if (pipe2(report_pipe, O_CLOEXEC) != 0)
		die("cannot make a pipe: %s; raise 'ulimit -n' or close some descriptors", strerror(errno));
	report_pipe[0] = above_stdio(report_pipe[0]);
	report_pipe[1] = above_stdio(report_pipe[1]);
	l->sock = link_socket(0);
	l->lost = 0;
	l->child = fork();
	if (l->child < 0)
		die("cannot fork: %s; end some processes or raise the limit on them", strerror(errno));
	if (l->child == 0) {
		if (l->restore_chld)
			sigaction(SIGCHLD, &l->chld, NULL);
		sigprocmask(SIG_SETMASK, &l->mask, NULL);
		child_begin(&l->options, &begin_message, l->sock, report_pipe[1], launcher, again);
	}
	close(report_pipe[1]);
	l->report_fd = report_pipe[0];
	if (l->sigfd < 0) {
		sigfillset(&watched);
		l->sigfd = above_stdio(signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK));
	}
	return wait_for_child(l);
}

/* Hold back every signal that can be: they are read from a signalfd once the child is there. Those that the kernel raises
 * for a defect of ours keep killing us. */
static void hold_signals(struct launcher *l)
{
	static const int OWN[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
	sigset_t held;

	sigfillset(&held);
	for (size_t i = 0; i < sizeof OWN / sizeof *OWN; i++)
		sigdelset(&held, OWN[i]);
	sigprocmask(SIG_SETMASK, &held, &l->mask);
	/* A caller that ignores SIGCHLD has its children reaped by the kernel: then there would be no status to read. */
	sigaction(SIGCHLD, NULL, &l->chld);
	if (l->chld.sa_handler == SIG_IGN) {
		struct sigaction usual = {.sa_handler = SIG_DFL};

		l->restore_chld = 1;
		sigaction(SIGCHLD, &usual, NULL);
	}
}

int main(int argc, char **argv)
{
	static struct launcher l = {.sigfd = -1, .report_fd = -1, .sock = -1, .backoff = BACKOFF_MS};
	long long give_up_at = 0, backoff = BACKOFF_MS;
	int status, number;

	wire_start(&begin_message, WIRE_BEGIN);
	options_read(&l.options, &begin_message, argc, argv);
	hold_signals(&l);
	status = attempt(&l, 0);
	/* The daemon went away (a restart) while the call was in its queue: begin again, with a bound. */
	while (l.lost) {
		if (!give_up_at)
			give_up_at = now_ms() + REBEGIN_MS;
		number = pause_ms(&l, backoff, -1);
		if (number)
			end_as(number); /* the wait status of a death by that signal is its number */
		backoff = backoff * 2 > 1000 ? 1000 : backoff * 2;
		status = attempt(&l, now_ms() < give_up_at);
		if (l.lost && now_ms() >= give_up_at)
			die("the daemon at %s went away %d s ago while the call waited in its queue; start agentd and try again",
			    l.options.socket_path, REBEGIN_MS / 1000);
	}
	if (l.call[0]) {
		report_end(&l, status);
		tell_ended(l.call, status, NULL);
	} else if (l.uncontrolled) {
		tell_uncontrolled(status);
	}
	end_as(status);
}
