set -x; nproc
useradd -m -s /bin/bash dev
tar -C /tmp -xf /payload/release.tar.gz 2>/dev/null
scripts/install --no-start /payload/release.tar.gz
id dev
time loginctl enable-linger dev
for i in $(seq 100); do [ -S /run/user/$(id -u dev)/systemd/private ] && break; sleep 0.2; done
cat > /tmp/as.sh <<'E'
export XDG_RUNTIME_DIR=/run/user/$(id -u)
cd ~
set -x; nproc
systemctl --user is-system-running
systemctl --user start corral-calls; systemctl --user status corral-calls --no-pager | head -20
agentd=/opt/corral/bin/agentd
systemctl --user start agentd; systemctl --user status agentd --no-pager | head -20
journalctl --user -u agentd -n 20 --no-pager -o cat
cat /sys/fs/cgroup/user.slice/user-$(id -u).slice/user@$(id -u).service/cgroup.controllers
ls -la $XDG_RUNTIME_DIR/corral ~/.local/state/corral
corral doctor
corral run -- id
systemd-run --user --scope --collect -q -- corral run --memory :64M -- sh -c 'cat /proc/self/cgroup; echo hi'
systemd-run --user --scope --collect -q -- corral run --memory :64M -- python3 -c 'x=bytearray(300<<20)'
corral ps; corral history --since 1h
busctl --user list | head -3
sleep 100 & 
busctl --user call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager AttachProcessesToUnit ssau corral-calls.service /agentd 1 $!
cat /proc/$!/cgroup; kill $!
systemctl --user stop corral-calls; systemctl --user is-active agentd
E
chmod 755 /tmp/as.sh
mkdir -p /sys/fs/cgroup/user.slice/user-1000.slice/session-9.scope
cat /proc/self/cgroup
setpriv --reuid=dev --regid=dev --init-groups env -i HOME=/home/dev PATH=/usr/local/bin:/usr/bin:/bin bash /tmp/as.sh
