#!/usr/bin/env bash
# From a shop's log to recommendations. With your own log: leave out the first command, and name your columns.
#
#     pip install -e '.[train]' && mkdir SHOP && cd SHOP && ../examples/own_csv/run.sh      options go to `tawin train`
set -euo pipefail
python "$(dirname "$(realpath "$0")")/make_log.py"

tawin prepare csv log.csv DATA --items items.csv \
    --user-column customer --item-column sku --time-column bought_at --items-item-column sku --title-column name
tawin train --preset cpu-small --data DATA --out RUN "$@"
tawin recommend RUN --history tent-00,stove-00 --top 5
