# Sourced by .ci/run and .ci/long, from the top of the repository: what they install, and a check
# with its line in the summary.

export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0 PYTHONDONTWRITEBYTECODE=1
# Where a virtual environment and cargo-deny's build go: below target/, so that git stays clean.
readonly TOOLS=target/ci
# For the tests that are scripts.
export TIDEGATE_PYTHON=$PWD/$TOOLS/python/bin/python TIDEGATE_NODE=$PWD/$TOOLS/node

summary=()
failed=0

# check NAME COMMAND...: runs it, prints how long it took, remembers how it ended. A command that
# cannot do its work here prints why and returns 77, or 78 if no CI machine could do it.
check() {
  local name=$1 began=$SECONDS code=0 verdict=ok
  shift
  printf '\n==== %s (after %ds): %s\n' "$name" "$SECONDS" "$*"
  "$@" </dev/null || code=$?
  case $code in
    0) ;;
    77) verdict=SKIPPED && if [[ ${CI:-} == true ]]; then failed=1; fi ;;
    78) verdict='NOT CHECKED, see above' ;;
    *) verdict="FAILED (exit code $code)" && failed=1 ;;
  esac
  printf -- '---- %s: %s, %ds\n' "$name" "$verdict" $((SECONDS - began))
  summary+=("$(printf '%-12s %5ds  %s' "$name" $((SECONDS - began)) "$verdict")")
}

# mosquitto and its clients, RabbitMQ, paho's C clients, the influx command, curl, a clock that
# can be set, and Python's venv.
# (The brokers' own services are not used.)
install_packages() {
  local wanted=(mosquitto mosquitto-clients rabbitmq-server paho.mqtt.c-examples influxdb-client curl
    libfaketime python3-venv)
  local missing=() package
  # Node comes from many places; any that is there will do.
  command -v npm >/dev/null || wanted+=(nodejs npm)
  for package in "${wanted[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
      missing+=("$package")
  done
  [[ ${#missing[@]} -eq 0 ]] && return 0
  apt-get update -q &&
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# paho, influxdb-client, DuckDB, delta-rs and moto.
install_python() {
  python3 -m venv "$TOOLS/python" &&
    "$TOOLS/python/bin/pip" install --quiet --disable-pip-version-check \
      -r tests/clients/requirements.txt
}

# mqtt.js, without the scripts that packages want to run.
install_node() {
  mkdir -p "$TOOLS/node" && cp tests/clients/node/package*.json "$TOOLS/node/" &&
    npm ci --prefix "$TOOLS/node" --ignore-scripts --no-audit --no-fund
}

# Ends the script with the summary.
conclude() {
  printf '\n==== summary after %ds\n' "$SECONDS"
  printf '%s\n' "${summary[@]}"
  exit "$failed"
}
