#!/bin/bash
# unattached.sh PROGRAM: under the shim, without a server: the hooks alone.
source "$(dirname "$0")/common.sh"
EDM_SERVER=off LD_PRELOAD=$EDM_SHIM "$@" || fail "status $? with server=off"
EDM_SERVER=auto EDM_ATTACH_THRESHOLD=64G EDM_SOCKET=$CASE_TMP/none LD_PRELOAD=$EDM_SHIM "$@" ||
    fail "status $? below the threshold"
[[ ! -e $CASE_TMP/none ]] || fail "a server was started below the threshold"
