#!/bin/sh
# Runs on the emulated board once it is up, as root; the stage and this day's time stand in the kernel's command line.
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
stage=$(sed -n 's/.*board_test.stage=\([a-z]*\).*/\1/p' /proc/cmdline)
now=$(sed -n 's/.*board_test.now=\([0-9]*\).*/\1/p' /proc/cmdline)
started=$(cut -d. -f1 /proc/uptime)

end() {
    echo
    echo "BOARD-TEST-RC=$1"
    sync
    systemctl poweroff --force --force
    exit
}

figure() {
    echo "BOARD-TEST-FIGURE $*"
}

uptime_s() {
    cut -d' ' -f1 /proc/uptime
}

token() {
    tries=0
    until pi-agent token >/run/token 2>/run/why; do
        tries=$((tries + 1))
        if [ $tries -gt 90 ]; then
            cat /run/why
            pi-agent status
            journalctl -b -u pi-agent -o cat --no-pager | tail -n 20
            end 1
        fi
        sleep 1
    done
}

first() {
    uname -srm
    head -n 60 /proc/cpuinfo
    dpkg -i /opt/pi-agent.deb || end 1
    begin=$(uptime_s)
    pi-agent board --json | tr -d '\n' | sed 's/  */ /g; s/{ "schema"/{"schema"/'
    echo
    figure "pi-agent board $(echo "$(uptime_s) $begin" | awk '{print $1 - $2}') s"
    pi-agent board --explain
    pi-agent board --record /opt/recorded >/dev/null || end 1
    echo "BOARD-TEST-RECORDED-BEGIN"
    tar -C /opt/recorded -c . | gzip -9 | base64
    echo "BOARD-TEST-RECORDED-END"
    # Whoever sets up a board has it online, and so on time; afterwards the agent has to cope.
    date -u -s "@$((now + $(cut -d. -f1 /proc/uptime)))" >/dev/null
    begin=$(uptime_s)
    pi-agent setup "$(cat /opt/url)" --ca-file /etc/ssl/boot-test-ca.pem --enrollment-token-file /opt/enrollment-token || end 1
    figure "pi-agent setup $(echo "$(uptime_s) $begin" | awk '{print $1 - $2}') s"
    echo "BOARD-TEST-CUT"
    sleep 1000
}

again() {
    token
    figure "first token $(uptime_s) s after power-on (boot done at $started s)"
    pid=$(systemctl show -p MainPID --value pi-agent)
    figure "resident $(awk '/^VmRSS/ {print $2}' "/proc/$pid/status") kB"
    begin=$(uptime_s)
    for _ in 1 2 3 4 5; do pi-agent token >/dev/null; done
    figure "pi-agent token $(echo "$(uptime_s) $begin" | awk '{print ($1 - $2) / 5}') s"
    begin=$(uptime_s)
    for _ in 1 2 3 4 5; do curl -s --unix-socket /run/pi-agent/agent.sock http://pi/v1/token >/dev/null; done
    figure "curl $(echo "$(uptime_s) $begin" | awk '{print ($1 - $2) / 5}') s"
    pi-agent status
    systemctl show -p StatusText --value pi-agent
    journalctl -b -u pi-agent -o cat --no-pager
}

elsewhere() {
    tries=0
    until journalctl -b -u pi-agent -o cat --no-pager | grep 'error: this identity belongs'; do
        tries=$((tries + 1))
        [ $tries -le 60 ] || end 1
        sleep 1
    done
    ! pi-agent token || end 1
}

systemctl is-system-running --wait
# No battery, no time server: the board is months behind.
figure "clock $((($(date +%s) - now) / 86400)) days off"
$stage
end 0
