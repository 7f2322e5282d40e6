#!/bin/sh
# Journal one entry with curl and look it up: sh examples/append.sh [URL]
# command_data is base64 of a version byte and MessagePack; a UUID that is sent again changes nothing.
set -eu

url=${1:-http://127.0.0.1:8080}
uuid=$(cat /proc/sys/kernel/random/uuid)

curl --fail-with-body --silent --show-error --http2-prior-knowledge \
    --header 'content-type: application/json' --data @- "$url/entries" <<JSON
{"entries": [{
  "request_uuid": "$uuid",
  "received_ts_ms": $(date +%s)000,
  "command_type": "CreateOrder",
  "command_data": "AYGlcHJpY2WkNDc5OQ==",
  "order_id": 7,
  "events": [{"event_topic": "order-updates", "event_key": "7", "event_data": "AYA=",
              "event_type": "OrderUpdate"}]
}]}
JSON
echo
curl --fail-with-body --silent --show-error --http2-prior-knowledge "$url/entries/$uuid"
echo
