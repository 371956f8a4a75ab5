#!/bin/sh
# Makes the database once, then runs PostgreSQL as its own user. Killed at any point it can be started again: the
# new database appears in its place in one step, and what a killed attempt left is removed first.
set -eu

if [ "$(id -u)" = 0 ]; then
  chown postgres:postgres "$PGDATA"
  chmod 0700 "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

password=/run/secrets/db_password
cluster=$PGDATA/cluster

if [ ! -d "$cluster" ]; then
  if [ ! -s "$password" ]; then
    echo "db: the secret db_password is missing or empty: $password" >&2
    exit 1
  fi
  rm -rf "$cluster.new"
  echo "db: making a new database in $PGDATA"
  initdb --pgdata="$cluster.new" --username=postgres --pwfile="$password" \
    --auth-local=peer --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 >/dev/null
  echo "host all all all scram-sha-256" >>"$cluster.new/pg_hba.conf"
  # Single-user mode: no server listens before the database is whole.
  echo "CREATE DATABASE votes" | postgres --single -D "$cluster.new" postgres >/dev/null
  postgres --single -j -D "$cluster.new" votes </schema.sql >/dev/null
  sync
  mv "$cluster.new" "$cluster"
fi

export PGDATA="$cluster"
exec "$@"
