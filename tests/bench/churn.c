/* Keeps many calls alive, and begins and ends them at a steady rate.
 *
 *   churn LIVE RATE SECONDS LAUNCHER HOLD
 *
 * Every call is `LAUNCHER --quiet -- HOLD INDEX`. First LIVE calls are begun, one after the other. Then "live" is
 * printed, and each line on stdin is a step: the first one churns (RATE begins a second for SECONDS seconds at moments
 * fixed in advance, each with the end of the oldest call), prints a line for each begin and "churned"; the second one
 * ends all calls. With 0 seconds the churning step is left out.
 *
 * A line of a begin: "begin INDEX SCHEDULED STARTED RAN", in nanoseconds of CLOCK_MONOTONIC: when it should have been
 * started, when it was, and when the tool's first instructions ran. A launcher that fails ends the program with 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct begun { /* as hold.c writes it */
	int64_t at;
	int32_t index, pid;
};

struct call {
	int64_t scheduled, started, ran;
	pid_t pid; /* of the tool, not of its launcher */
};

static struct call *calls;
static int begun, oldest, running, launchers; /* running: tools that have said so; launchers: not waited for yet */
static int reports[2];
static char *launcher, *hold;

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "churn: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void begin(int64_t scheduled)
{
	char index[16];
	char *argv[] = {launcher, "--quiet", "--", hold, index, NULL};
	int number = begun++;
	pid_t pid;

	snprintf(index, sizeof index, "%d", number);
	calls[number].scheduled = scheduled;
	calls[number].started = now();
	pid = vfork();
	if (pid == 0) {
		dup2(reports[1], STDOUT_FILENO);
		execv(launcher, argv);
		_exit(127);
	}
	if (pid < 0)
		fail("vfork");
	launchers++;
}

static void end_oldest(void)
{
	/* one that has not yet run cannot be ended; it is the newest, never the oldest, unless all is lost */
	if (oldest < begun && calls[oldest].pid)
		kill(calls[oldest++].pid, SIGTERM);
}

static void reap(void)
{
	int status;

	while (launchers > 0 && waitpid(-1, &status, WNOHANG) > 0) {
		launchers--;
		if (status) {
			fprintf(stderr, "churn: a launcher ended with wait status %d\n", status);
			exit(1);
		}
	}
}

static void read_reports(void)
{
	struct begun report;

	while (read(reports[0], &report, sizeof report) == sizeof report) {
		calls[report.index].ran = report.at;
		calls[report.index].pid = report.pid;
		running++;
	}
}

/* Waits until `timer` (-1: none) or a report is readable; true when the timer was. */
static int wait_for(int timer)
{
	struct pollfd fds[] = {{reports[0], POLLIN, 0}, {timer, POLLIN, 0}};
	uint64_t ticks;

	if (poll(fds, timer < 0 ? 1 : 2, 100) < 0 && errno != EINTR)
		fail("poll");
	read_reports();
	return timer >= 0 && (fds[1].revents & POLLIN) && read(timer, &ticks, sizeof ticks) == sizeof ticks;
}

static void churn(int live, int rate, int seconds)
{
	int64_t period = 1000000000LL / rate, first = now() + period;
	struct itimerspec when = {{0, period}, {first / 1000000000LL, first % 1000000000LL}};
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

	if (rate == 1)
		when.it_interval = (struct timespec){1, 0};
	if (timer < 0 || timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL))
		fail("timerfd");
	while (begun < live + rate * seconds) {
		wait_for(timer);
		/* what is due is begun at once: a late begin counts from when it was due */
		while (begun < live + rate * seconds && first + (begun - live) * period <= now()) {
			begin(first + (begun - live) * period);
			end_oldest();
		}
		reap();
	}
	while (running < begun) {
		wait_for(-1);
		reap();
	}
	close(timer);
	for (int i = live; i < begun; i++)
		printf("begin %d %lld %lld %lld\n", i, (long long)calls[i].scheduled, (long long)calls[i].started,
		       (long long)calls[i].ran);
}

static void next_line(void)
{
	char line[64];

	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		fail("stdin");
}

int main(int argc, char **argv)
{
	int live = argc == 6 ? atoi(argv[1]) : 0, rate = argc == 6 ? atoi(argv[2]) : 0;
	int seconds = argc == 6 ? atoi(argv[3]) : -1;

	if (live < 1 || rate < 1 || seconds < 0) {
		fprintf(stderr, "usage: churn LIVE RATE SECONDS LAUNCHER HOLD\n");
		return 2;
	}
	launcher = argv[4];
	hold = argv[5];
	calls = calloc((size_t)(live + rate * seconds), sizeof *calls);
	if (!calls || pipe2(reports, O_CLOEXEC) || fcntl(reports[0], F_SETFL, O_NONBLOCK))
		fail("start");
	while (begun < live) {
		begin(now());
		while (running < begun) {
			wait_for(-1);
			reap();
		}
	}
	printf("live\n");
	next_line();
	if (seconds) {
		churn(live, rate, seconds);
		printf("churned\n");
		next_line();
	}
	while (oldest < begun)
		end_oldest();
	while (launchers > 0) {
		reap();
		poll(NULL, 0, 5);
	}
	return 0;
}
