#!/bin/bash
# Init of a node that is a machine: what a distribution starts, then containerd, kube-proxy and the kubelet of the disk that the lab gave it.
exec </dev/null >/dev/ttyS0 2>&1
export PATH=/lab/bin:/usr/sbin:/usr/bin:/sbin:/bin
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /run || mount -t tmpfs -o mode=755 tmpfs /run
mount -o remount,rw /
mkdir -p /dev/shm /dev/pts /lab /run/lock
mount -t tmpfs tmpfs /dev/shm
mountpoint -q /dev/pts || mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
# As everywhere: it looks at every block device that appears.
/usr/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add
udevadm settle
modprobe -a virtio_net nbd dm_crypt overlay br_netfilter fuse loop
mount /dev/vdb /lab
mkdir -p /var/lib/containerd
mount --bind /lab/containerd /var/lib/containerd
. /lab/network
ulimit -n 65536
containerd --config /lab/containerd.toml >/var/log/containerd.log 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.2; done
echo E2E-CONTAINERD
kube-proxy --config /lab/proxy.json >/var/log/kube-proxy.log 2>&1 &
# The shell takes in what ends, as the first process must.
while :; do
    xargs kubelet </lab/kubelet.options >/var/log/kubelet.log 2>&1
    echo "E2E the kubelet ended: $(tail -n 5 /var/log/kubelet.log)"
    sleep 1
done
