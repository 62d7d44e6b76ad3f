/* Uses a known amount of one resource, and says how much it really was.
 *
 *   work cpu    SECONDS        CHILDREN
 *   work memory BYTES          CHILDREN      all children at once, each its share
 *   work memory-short BYTES    CHILDREN      one after the other, each all of it: the peak is one child's
 *   work read   BYTES          CHILDREN FILE
 *   work write  BYTES          CHILDREN FILE     FILE.N for child N
 *   work send   BYTES          CHILDREN PORT     TCP over loopback
 *
 * CHILDREN 0: the process itself. Otherwise that many children share the work, one after the other (memory: at once).
 * Prints "CALL AMOUNT": the id of its call, and what was used. AMOUNT is CPU in microseconds by getrusage(2), children
 * included, or bytes that write(2), read(2) or send(2) said were moved, or bytes touched.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 65536 };

static char block[BLOCK];
static const char *kind, *where;

static void fail(const char *what)
{
	perror(what);
	_exit(3);
}

static void spin(double seconds)
{
	struct timespec t;

	do
		clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	while ((double)t.tv_sec + (double)t.tv_nsec / 1e9 < seconds);
}

static void touch(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || madvise(memory, bytes, MADV_NOHUGEPAGE))
		fail("work: memory");
	for (size_t at = 0; at < bytes; at += 4096)
		*(volatile char *)(memory + at) = 1;
}

static uint64_t copy(int fd, size_t bytes, ssize_t (*move)(int, size_t))
{
	uint64_t moved = 0;

	while (moved < bytes) {
		ssize_t n = move(fd, bytes - moved < BLOCK ? bytes - moved : BLOCK);

		if (n <= 0)
			fail("work: transfer");
		moved += (uint64_t)n;
	}
	return moved;
}

static ssize_t in(int fd, size_t n) { return read(fd, block, n); }
static ssize_t out(int fd, size_t n) { return write(fd, block, n); }

static uint64_t transfer(size_t bytes, int number, int children)
{
	char path[4096];
	uint64_t moved;
	int fd;

	if (!strcmp(kind, "read")) {
		fd = open(where, O_RDONLY);
		if (fd < 0 || lseek(fd, (off_t)bytes * number, SEEK_SET) < 0)
			fail("work: file");
		moved = copy(fd, bytes, in);
	} else if (!strcmp(kind, "write")) {
		snprintf(path, sizeof path, children ? "%s.%d" : "%s", where, number);
		fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
		if (fd < 0)
			fail("work: file");
		moved = copy(fd, bytes, out);
		unlink(path);
	} else {
		struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(where))};

		to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		fd = socket(AF_INET, SOCK_STREAM, 0);
		if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
			fail("work: connect");
		moved = copy(fd, bytes, out);
		/* the receiver closes once it has read all: then every packet was sent */
		if (shutdown(fd, SHUT_WR) || read(fd, path, 1) != 0)
			fail("work: shutdown");
	}
	close(fd);
	return moved;
}

static void one(double amount, int number, int children)
{
	if (!strcmp(kind, "cpu"))
		spin(amount);
	else if (!strncmp(kind, "memory", 6))
		touch((size_t)amount);
	else
		transfer((size_t)amount, number, children);
}

/* All children live until every one has touched its share. */
static void memory_at_once(size_t share, int children)
{
	int touched[2], gate[2];
	char byte;

	if (pipe(touched) || pipe(gate))
		fail("work: pipe");
	for (int i = 0; i < children; i++) {
		pid_t pid = fork();

		if (pid < 0)
			fail("work: fork");
		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(gate[1]);
			touch(share);
			if (write(touched[1], "", 1) != 1 || read(gate[0], &byte, 1) != 0)
				_exit(3);
			_exit(0);
		}
	}
	for (int i = 0; i < children; i++)
		if (read(touched[0], &byte, 1) != 1)
			fail("work: child");
	close(gate[1]);
}

int main(int argc, char **argv)
{
	double total = argc > 3 ? strtod(argv[2], NULL) : 0, share, used;
	int children = argc > 3 ? atoi(argv[3]) : 0, status, failed = 0;
	struct rusage self, others;
	const char *call = getenv("CORRAL_CALL");

	if (total <= 0 || children < 0) {
		fprintf(stderr, "usage: work KIND AMOUNT CHILDREN [FILE|PORT]\n");
		return 2;
	}
	kind = argv[1];
	where = argc > 4 ? argv[4] : "";
	share = children && strcmp(kind, "memory-short") ? total / children : total;
	if (strcmp(kind, "cpu"))
		share = (double)(uint64_t)share;
	if (!children)
		one(share, 0, 0);
	else if (!strcmp(kind, "memory"))
		memory_at_once((size_t)share, children);
	for (int i = 0; i < children && strcmp(kind, "memory"); i++) {
		pid_t pid = fork();

		if (pid < 0)
			fail("work: fork");
		if (pid == 0) {
			one(share, i, children);
			_exit(0);
		}
		if (waitpid(pid, &status, 0) < 0 || status)
			failed = 1;
	}
	while (wait(&status) > 0)
		failed |= status != 0;
	getrusage(RUSAGE_SELF, &self);
	getrusage(RUSAGE_CHILDREN, &others);
	used = (double)(self.ru_utime.tv_sec + self.ru_stime.tv_sec + others.ru_utime.tv_sec + others.ru_stime.tv_sec) *
		       1e6 +
	       (double)(self.ru_utime.tv_usec + self.ru_stime.tv_usec + others.ru_utime.tv_usec +
			others.ru_stime.tv_usec);
	if (!strcmp(kind, "memory-short") || !children)
		total = share;
	else
		total = share * children;
	printf("%s %.0f\n", call ? call : "-", strcmp(kind, "cpu") ? total : used);
	return failed || fflush(stdout) ? 3 : 0;
}
