#!/bin/bash
# Init of the guest: writes files with checksums, reads them back past the cache, until it is told to stop on the console.
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo 2>/dev/null
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mount -o remount,rw /
mkdir -p /data
echo E2E-UP
round=0
wrong=0
while :; do
    round=$((round + 1))
    f=/data/f$((round % 24))
    dd if=/dev/urandom of=$f.new bs=32k count=$((round % 16 + 1)) status=none && sync -f $f.new
    sha256sum <$f.new >$f.sum
    mv $f.new $f
    sync -f /data
    echo 3 >/proc/sys/vm/drop_caches
    back=$(sha256sum <$f)
    if [ "$back" != "$(cat $f.sum)" ]; then
        echo "E2E-WRONG $f in round $round"
        wrong=1
    fi
    echo "E2E-ROUND $round"
    if read -r -t 0.05 word && [ "$word" = stop ]; then
        break
    fi
done
echo 3 >/proc/sys/vm/drop_caches
for f in /data/f*.sum; do
    file=${f%.sum}
    [ "$(sha256sum <"$file")" = "$(cat "$f")" ] || { echo "E2E-WRONG $file at the end"; wrong=1; }
done
[ $wrong = 0 ] && echo E2E-FILES-OK
if dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|blk_update_request|Remounting filesystem|hung task|blocked for more'; then
    echo E2E-DMESG-BAD
else
    echo E2E-DMESG-CLEAN
fi
sync
mount -o remount,ro / && echo E2E-BYE
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
