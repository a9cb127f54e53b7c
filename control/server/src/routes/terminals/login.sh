# Becomes the login shell of whoever runs this, by builtins alone: an image may have little else.
# $1: what the shell runs, or nothing.
uid= user= home= shell=
while read -r key real rest; do
    if [ "$key" = Uid: ]; then uid=$real; break; fi
done </proc/self/status
if [ -r /etc/passwd ]; then
    while IFS=: read -r name password id group comment directory program; do
        if [ "$id" = "$uid" ]; then user=$name home=$directory shell=$program; break; fi
    done </etc/passwd
fi
# The profile has set these for the tools' user.
if [ "$uid" = 0 ]; then
    HOME=${home:-/root} USER=${user:-root} LOGNAME=${user:-root}
    export HOME USER LOGNAME
fi
case $shell in */nologin | */false | */true) shell= ;; esac
for program in "$shell" "${SHELL-}" /bin/bash /bin/sh; do
    if [ -n "$program" ] && [ -x "$program" ]; then break; fi
done
SHELL=$program
export SHELL
# A terminal that the image does not know draws nothing right.
known=
for directory in "${HOME-}/.terminfo" /etc/terminfo /lib/terminfo /usr/lib/terminfo /usr/share/terminfo; do
    if [ -e "$directory/${TERM%"${TERM#?}"}/$TERM" ]; then known=1; fi
done
if [ -z "$known" ]; then TERM=xterm-256color; fi
case ${LANG-} in
    '' | C | C.* | POSIX) ;;
    *)
        if ! [ -e /usr/lib/locale/locale-archive ] && ! [ -d "/usr/lib/locale/$LANG" ]; then
            LANG=C.UTF-8
        fi
        ;;
esac
export TERM LANG
if [ -n "${1-}" ]; then exec "$program" -l -c "$1"; fi
exec "$program" -l
