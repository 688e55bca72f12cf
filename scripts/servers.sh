#!/usr/bin/env bash
# Makes sure that the tests find RabbitMQ, Redis and a compose command: what is there is used, what is missing is
# installed with apt where this user is root, and otherwise it says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."

have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/usr/lib/rabbitmq/bin/$1" ]; }
has_compose() { docker compose version >/dev/null 2>&1 || [ -x .venv/libexec/docker-compose ]; }

missing=()
[ -n "${MAVERIQ_TEST_AMQP_URL:-}" ] || have rabbitmq-server || missing+=(rabbitmq-server)
[ -n "${MAVERIQ_TEST_REDIS_URL:-}" ] || have redis-server || missing+=(redis-server)

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "The tests need: ${missing[*]}" >&2
        echo "Install them (Debian and Ubuntu: sudo apt-get install ${missing[*]}; macOS: brew install rabbitmq redis)," >&2
        echo "or name running servers that may be flushed: MAVERIQ_TEST_AMQP_URL=amqp://... MAVERIQ_TEST_REDIS_URL=redis://..." >&2
        exit 1
    fi
    echo "installing ${missing[*]}"
    # The tests start private instances on free ports: the packages are not to start their own.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# `docker compose config` needs no engine, only the compose plugin. Debian before 13 has none: 13's is unpacked here.
if ! has_compose && command -v apt-get >/dev/null && [ -e /usr/share/keyrings/debian-archive-keyring.gpg ]; then
    work=$(mktemp -d)
    chmod 755 "$work"
    mkdir -p "$work/lists/partial" .venv/libexec
    echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main' >"$work/sources.list"
    apt=(apt-get -qq -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$work/lists" -o APT::Sandbox::User=root)
    if (cd "$work" && "${apt[@]}" update && "${apt[@]}" download docker-compose) >/dev/null 2>&1; then
        dpkg -x "$work"/docker-compose_*.deb "$work/unpacked"
        cp "$work/unpacked/usr/libexec/docker/cli-plugins/docker-compose" .venv/libexec/docker-compose
    fi
    rm -rf "$work"
fi
if ! has_compose; then
    echo "The tests need docker compose (2.x; no engine): https://docs.docker.com/compose/install/" >&2
    exit 1
fi
