#!/bin/sh
# Journal one entry with curl and look it up: sh examples/append.sh [URL]
# JOURNAL_TOKEN is shown where the service has tokens (scopes write and read), and not in the list of processes.
# command_data is base64 of a version byte and MessagePack; a UUID that is sent again changes nothing.
set -eu

url=${1:-http://127.0.0.1:8080}
uuid=$(cat /proc/sys/kernel/random/uuid)

call() {
    printf 'header = "authorization: Bearer %s"\n' "${JOURNAL_TOKEN:-none}" |
        curl --config - --fail-with-body --silent --show-error --http2-prior-knowledge "$@"
    echo
}

call "$url/entries" --header 'content-type: application/json' --data '{"entries": [{
  "request_uuid": "'"$uuid"'",
  "received_ts_ms": '"$(date +%s)"'000,
  "command_type": "CreateOrder",
  "command_data": "AYGlcHJpY2WkNDc5OQ==",
  "order_id": 7,
  "events": [{"event_topic": "order-updates", "event_key": "7", "event_data": "AYA=",
              "event_type": "OrderUpdate"}]
}]}'
call "$url/entries/$uuid"
