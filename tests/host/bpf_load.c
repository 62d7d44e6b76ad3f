/* What the tests of the kernel side run inside a group: does one exactly known thing, after a byte on its stdin. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static size_t bytes;
static int advice;

static void *touch(void *unused)
{
	char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		exit(3);
	madvise(at, bytes, advice);
	for (size_t i = 0; i < bytes; i += 4096)
		at[i] = 1;
	munmap(at, bytes);
	return unused;
}

/* touch BYTES huge|small THREADS CHILDREN: every thread touches BYTES of its own, after CHILDREN forks that do it too. */
static void touch_all(char **arg)
{
	pthread_t thread[64];
	int threads = atoi(arg[2]), children = atoi(arg[3]);

	bytes = strtoull(arg[0], NULL, 10);
	advice = strcmp(arg[1], "huge") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE;
	for (int i = 0; i < children; i++)
		if (!fork()) {
			touch(NULL);
			_exit(0);
		}
	for (int i = 1; i < threads; i++)
		pthread_create(&thread[i], NULL, touch, NULL);
	touch(NULL);
	for (int i = 1; i < threads; i++)
		pthread_join(thread[i], NULL);
	while (wait(NULL) > 0)
		;
}

/* forks N PATH: N children that end at once, or that execute PATH. */
static void forks(char **arg)
{
	for (int i = atoi(arg[0]); i > 0; i--) {
		pid_t child = fork();

		if (!child) {
			if (arg[1])
				execl(arg[1], arg[1], NULL);
			_exit(0);
		}
		waitpid(child, NULL, 0);
	}
}

/* io READ WRITE CHILDREN: so many bytes from /dev/zero and to /dev/null, in blocks, here and in each child. */
static void io(char **arg)
{
	static char block[65536];
	int in = open("/dev/zero", O_RDONLY), out = open("/dev/null", O_WRONLY);

	for (int i = atoi(arg[2]); i > 0; i--)
		if (!fork()) {
			arg[2] = "0";
			io(arg);
			_exit(0);
		}
	for (long left = atol(arg[0]); left > 0; left -= sizeof(block))
		if (read(in, block, sizeof(block)) < 0)
			exit(3);
	for (long left = atol(arg[1]); left > 0; left -= sizeof(block))
		if (write(out, block, sizeof(block)) < 0)
			exit(3);
	while (wait(NULL) > 0)
		;
}

static pthread_t leader;

static void *outlive(void *path)
{
	pthread_join(leader, NULL);
	if (path)
		execl(path, path, NULL);
	pthread_exit(NULL);
}

/* leaders N PATH: N children whose first thread ends before another, which ends too, or executes PATH. */
static void leaders(char **arg)
{
	for (int i = atoi(arg[0]); i > 0; i--) {
		pid_t child = fork();
		pthread_t other;

		if (!child) {
			leader = pthread_self();
			pthread_create(&other, NULL, outlive, arg[1]);
			pthread_exit(NULL);
		}
		waitpid(child, NULL, 0);
	}
}

static pthread_barrier_t early_done;

static void early_io(void)
{
	io((char *[]){"1048576", "1048576", "0", NULL});
}

/* A thread with a past of its own, which lives on. */
static void *early(void *unused)
{
	early_io();
	pthread_barrier_wait(&early_done);
	for (;;)
		pause();
	return unused;
}

static socklen_t address(struct sockaddr_storage *to, char **arg)
{
	struct sockaddr_in *v4 = (void *)to;
	struct sockaddr_in6 *v6 = (void *)to;

	memset(to, 0, sizeof(*to));
	if (inet_pton(AF_INET, arg[0], &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(atoi(arg[1]));
		return sizeof(*v4);
	}
	inet_pton(AF_INET6, arg[0], &v6->sin6_addr);
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons(atoi(arg[1]));
	return sizeof(*v6);
}

/* connect|send ADDRESS PORT: says the errno (0: it went). */
static int reach(char **arg, int sending)
{
	struct sockaddr_storage to;
	socklen_t size = address(&to, arg);
	int fd = socket(to.ss_family, sending ? SOCK_DGRAM : SOCK_STREAM, 0), result;

	if (sending)
		result = sendto(fd, "x", 1, 0, (void *)&to, size);
	else
		result = connect(fd, (void *)&to, size);
	result = result < 0 ? errno : 0;
	close(fd);
	return result;
}

/* raw ADDRESS PORT: a UDP header through a raw socket; says the errno. */
static int raw(char **arg)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	unsigned short header[4] = {htons(4000), htons(atoi(arg[1])), htons(8), 0};
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_UDP);

	inet_pton(AF_INET, arg[0], &to.sin_addr);
	return sendto(fd, header, sizeof(header), 0, (void *)&to, sizeof(to)) < 0 ? errno : 0;
}

/* connects ADDRESS PORT COUNT: so many attempts; the last errno. */
static int connects(char **arg)
{
	int said = 0;

	for (int i = atoi(arg[2]); i > 0; i--)
		said = reach(arg, 0);
	return said;
}

/* connected ADDRESS PORT: connects a UDP socket, says so, and after another byte sends. */
static int connected(char **arg)
{
	struct sockaddr_storage to;
	socklen_t size = address(&to, arg);
	int fd = socket(to.ss_family, SOCK_DGRAM, 0);
	char go;

	if (connect(fd, (void *)&to, size))
		exit(3);
	printf("0\n");
	fflush(stdout);
	if (read(0, &go, 1) != 1)
		exit(2);
	return send(fd, "x", 1, 0) < 0 ? errno : 0;
}

/* udp COUNT SIZE: datagrams to oneself over loopback, each received before the next. */
static void udp(char **arg)
{
	struct sockaddr_in self = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(self);
	int fd = socket(AF_INET, SOCK_DGRAM, 0), length = atoi(arg[1]);
	char block[65536] = {0};

	if (bind(fd, (void *)&self, size) || getsockname(fd, (void *)&self, &size))
		exit(3);
	for (int i = atoi(arg[0]); i > 0; i--)
		if (sendto(fd, block, length, 0, (void *)&self, size) != length || recv(fd, block, sizeof(block), 0) != length)
			exit(3);
}

int main(int argc, char **argv)
{
	char go, *what = argv[1], **arg = argv + 2;
	pthread_t other;
	int said = 0;

	if (argc < 2)
		return 2;
	/* "early": what it does before it is moved into the group must not be counted there. */
	if (!strcmp(what, "early")) {
		pthread_barrier_init(&early_done, NULL, 2);
		pthread_create(&other, NULL, early, NULL);
		early_io();
		pthread_barrier_wait(&early_done);
		what = *arg++;
	}
	/* Only now is the exec over: before, the parent may find its pid while the kernel still loads the program. */
	printf("ready\n");
	fflush(stdout);
	if (read(0, &go, 1) != 1)
		return 2;
	if (!strcmp(what, "touch"))
		touch_all(arg);
	else if (!strcmp(what, "forks"))
		forks(arg);
	else if (!strcmp(what, "leaders"))
		leaders(arg);
	else if (!strcmp(what, "io"))
		io(arg);
	else if (!strcmp(what, "udp"))
		udp(arg);
	else if (!strcmp(what, "connect") || !strcmp(what, "send"))
		said = reach(arg, *what == 's');
	else if (!strcmp(what, "raw"))
		said = raw(arg);
	else if (!strcmp(what, "connects"))
		said = connects(arg);
	else if (!strcmp(what, "connected"))
		said = connected(arg);
	else if (!strcmp(what, "open"))
		said = open(arg[0], O_RDONLY) < 0 ? errno : 0;
	else
		return 2;
	printf("%d\n", said);
	fflush(stdout);
	/* Held alive for the readings of a living process, until stdin closes or another byte comes. */
	(void)!read(0, &go, 1);
	return 0;
}
