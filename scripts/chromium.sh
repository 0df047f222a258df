#!/usr/bin/env bash
# Sees to it that Chromium is there for the browser tests: installs it where that is allowed, else says so.
set -euo pipefail

for name in "${ASTRID_CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
    if [ -n "$name" ] && command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ]; then as_root=(); elif sudo -n true 2>/dev/null; then as_root=(sudo -n); else as_root=(false); fi
if [ "${as_root[0]:-}" != false ] && command -v apt-get >/dev/null; then
    echo "Installing Chromium" >&2
    export DEBIAN_FRONTEND=noninteractive
    if "${as_root[@]}" apt-get update -qq >/dev/null &&
        "${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; then
        exit 0
    fi
fi
echo "Chromium is not installed and could not be: the browser tests need it (apt-get install chromium)" >&2
