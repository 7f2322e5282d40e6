#!/bin/sh
# Get the servers that benchmarks compare with: `sh bench/setup.sh`. What can't be had is left out, with
# a note; the benchmark then leaves out its rows. No server that is installed here is started as a daemon.
#
#   redis-server, etcd   Debian's packages, where apt-get is there and this runs as root
#   nats-server          its Go module (Debian's version has no `sync: always`), where Go is there
#   Kafka                its published jars, where Java and Maven are there
set -eu
cd "$(dirname "$0")"

servers=.servers
nats=github.com/nats-io/nats-server/v2@v2.12.1
kafka_version=4.1.0

say() { printf 'bench: %s\n' "$*" >&2; }

install_packages() {
    missing=
    command -v redis-server >/dev/null || missing="redis-server"
    command -v etcd >/dev/null || missing="$missing etcd-server"
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
        say "left out:$missing (as root, where there is apt-get, they are installed)"
        return 0
    fi
    # What tells Debian's packages not to start their daemons.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap 'rm -f $policy' EXIT
    fi
    say "installing $missing"
    # shellcheck disable=SC2086 # one word a package
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
        --no-install-recommends -o Dpkg::Use-Pty=0 $missing; } >/dev/null ||
        say "left out:$missing (apt-get failed)"
}

install_nats() {
    [ ! -x $servers/bin/nats-server ] || return 0
    if ! command -v go >/dev/null; then
        say "left out: nats-server (there is no Go)"
        return 0
    fi
    say "building nats-server"
    GOBIN=$PWD/$servers/bin go install $nats 2>$servers/nats.log ||
        say "left out: nats-server (see bench/$servers/nats.log)"
}

install_kafka() {
    [ ! -d $servers/kafka ] || return 0
    if ! command -v java >/dev/null || ! command -v mvn >/dev/null; then
        say "left out: Kafka (it needs Java and Maven)"
        return 0
    fi
    say "getting Kafka"
    cat >$servers/pom.xml <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>journal</groupId><artifactId>bench</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$kafka_version</version>
    </dependency>
  </dependencies>
</project>
POM
    mvn --quiet --batch-mode --file $servers/pom.xml dependency:copy-dependencies \
        -DoutputDirectory="$PWD/$servers/kafka.part" >$servers/kafka.log 2>&1 &&
        mv $servers/kafka.part $servers/kafka || say "left out: Kafka (see bench/$servers/kafka.log)"
}

mkdir -p $servers
install_packages
install_nats
install_kafka
