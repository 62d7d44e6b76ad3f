/* What the tests of the daemon run as a tool: the steps of its command line, one after the other.
 *
 *   cgroup            print /proc/self/cgroup
 *   say:TEXT          print a line
 *   pid               print "pid NUMBER"
 *   wait              read a line from stdin; exit 9 when there is none
 *   pause             for ever
 *   touch:BYTES       map so many bytes in 4 KiB pages, write to each, keep them
 *   free              give back what was touched last
 *   cpu:MS            burn so many milliseconds of CPU
 *   write:BYTES       to /dev/null, in blocks of 64 KiB          read:BYTES  from /dev/zero
 *   udp:COUNT:SIZE    datagrams to oneself over loopback, each received before the next
 *   connect:PORT      over TCP to 127.0.0.1: print "connect ERRNO"
 *   bomb:MOST         sleeping children until fork fails or MOST: print "forked COUNT errno ERRNO"
 *   spawn:COUNT       so many children that end at once, each waited for
 *   leave:BYTES       a grandchild in a session of its own, without our descriptors, that touches BYTES and stays;
 *                     print "left PID" once it has
 *   child             fork: the child does the steps that follow, the parent waits, and exits as it did
 *   beside            fork: the child does the steps that follow, the parent waits for nothing and pauses
 *   exit:STATUS       signal:NUMBER (to oneself)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char *touched;
static size_t touched_size;
static char block[65536];

static void fail(const char *what)
{
	perror(what);
	exit(70);
}

static void touch(size_t size)
{
	touched = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (touched == MAP_FAILED)
		fail("mmap");
	touched_size = size;
	madvise(touched, size, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < size; i += 4096)
		touched[i] = 1;
}

static void burn(long ms)
{
	struct timespec now;

	do
		clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	while (now.tv_sec * 1000 + now.tv_nsec / 1000000 < ms);
}

static void copy(const char *path, int flags, size_t size)
{
	int fd = open(path, flags);

	if (fd < 0)
		fail(path);
	while (size > 0) {
		size_t part = size < sizeof block ? size : sizeof block;
		ssize_t done = flags == O_RDONLY ? read(fd, block, part) : write(fd, block, part);

		if (done <= 0)
			fail(path);
		size -= (size_t)done;
	}
	close(fd);
}

static void udp(long count, size_t size)
{
	struct sockaddr_in self = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof self;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0 || bind(fd, (void *)&self, length) || getsockname(fd, (void *)&self, &length))
		fail("udp");
	for (; count > 0; count--)
		if (sendto(fd, block, size, 0, (void *)&self, length) != (ssize_t)size ||
		    recv(fd, block, size, 0) != (ssize_t)size)
			fail("udp");
	close(fd);
}

static int reach(long port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM, 0), failed;

	to.sin_port = htons((unsigned short)port);
	failed = connect(fd, (void *)&to, sizeof to) < 0 ? errno : 0;
	close(fd);
	return failed;
}

static void bomb(long most)
{
	long count = 0;
	pid_t child = 0;

	for (; count < most && (child = fork()) > 0; count++)
		;
	if (child == 0 && count < most) {
		close(1); /* our reader must see the end of the main process */
		close(2);
		for (;;)
			pause();
	}
	printf("forked %ld errno %d\n", count, child < 0 ? errno : 0);
}

/* As a daemon detaches itself: out of the session, away from the terminal and from its parent. */
static void leave(size_t size)
{
	int ready[2];
	pid_t grandchild;

	if (pipe(ready))
		fail("pipe");
	if (!fork()) {
		setsid();
		if (fork())
			_exit(0);
		grandchild = getpid();
		for (int fd = 0; fd < 3; fd++)
			dup2(open("/dev/null", O_RDWR), fd);
		touch(size);
		if (write(ready[1], &grandchild, sizeof grandchild) < 0)
			_exit(1);
		for (int fd = 3; fd < 32; fd++)
			close(fd);
		for (;;)
			pause();
	}
	close(ready[1]);
	wait(NULL);
	if (read(ready[0], &grandchild, sizeof grandchild) != sizeof grandchild)
		fail("leave");
	close(ready[0]);
	printf("left %d\n", (int)grandchild);
}

static void step(const char *what)
{
	const char *colon = strchr(what, ':');
	size_t name = colon ? (size_t)(colon - what) : strlen(what);
	const char *value = colon ? colon + 1 : "";
	char line[256];
	int status;

#define IS(text) (name == sizeof text - 1 && strncmp(what, text, name) == 0)
	if (IS("cgroup")) {
		FILE *file = fopen("/proc/self/cgroup", "re");

		while (file && fgets(line, sizeof line, file))
			fputs(line, stdout);
	} else if (IS("say"))
		printf("%s\n", value);
	else if (IS("pid"))
		printf("pid %d\n", (int)getpid());
	else if (IS("wait")) {
		char byte;

		/* byte by byte: a child after us reads its own line */
		do
			if (read(0, &byte, 1) != 1)
				exit(9);
		while (byte != '\n');
	} else if (IS("pause"))
		for (;;)
			pause();
	else if (IS("touch"))
		touch(strtoull(value, NULL, 10));
	else if (IS("free"))
		munmap(touched, touched_size);
	else if (IS("cpu"))
		burn(atol(value));
	else if (IS("write"))
		copy("/dev/null", O_WRONLY, strtoull(value, NULL, 10));
	else if (IS("read"))
		copy("/dev/zero", O_RDONLY, strtoull(value, NULL, 10));
	else if (IS("udp"))
		udp(atol(value), (size_t)atol(strchr(value, ':') + 1));
	else if (IS("connect"))
		printf("connect %d\n", reach(atol(value)));
	else if (IS("bomb"))
		bomb(atol(value));
	else if (IS("spawn")) {
		for (long count = atol(value); count > 0; count--) {
			pid_t child = fork();

			if (!child)
				_exit(0);
			if (child < 0)
				fail("fork");
			waitpid(child, NULL, 0);
		}
	} else if (IS("leave"))
		leave(strtoull(value, NULL, 10));
	else if (IS("child")) {
		if (fork()) {
			wait(&status);
			if (WIFSIGNALED(status))
				exit(128 + WTERMSIG(status));
			exit(WEXITSTATUS(status));
		}
	} else if (IS("beside")) {
		if (fork())
			for (;;)
				pause();
	} else if (IS("exit"))
		exit(atoi(value));
	else if (IS("signal"))
		kill(getpid(), atoi(value));
	else
		exit(64);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		step(argv[i]);
	return 0;
}
