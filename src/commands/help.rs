//! What stands below the flags in `--help`, and in the sections of the same names of the man pages: a heading that ends
//! with a colon, then indented lines that fit 80 columns.

pub(super) const BALANCE: &str = "\
Examples:
  balance dev           all of it on this machine, with nothing to set up
  balance dev --demo    the same, with users who do something
  balance serve         one replica; needs DATABASE_URL and APPROVER_URL
  balance man serve     the man page of a command

Configuration:
  Most flags have an environment variable, which the help of a command names
  beside them. A flag wins.";

pub(super) const DEV: &str = "\
Examples:
  balance dev
  balance dev --demo
  balance dev --listen 127.0.0.1:0                  on a free port
  APPROVER_URL=http://localhost:9090 balance dev    with an Approver of your own";

pub(super) const SERVE: &str = "\
Examples:
  export DATABASE_URL=postgres://balance:secret@localhost:5432/balance
  export APPROVER_URL=http://localhost:9090
  balance migrate
  balance serve
  balance serve --listen 0.0.0.0:8081 --instance two --operations-log two.log

Signals:
  SIGTERM, SIGINT    stop in order: /readyz says no, what is under way is
                     answered, the operations log is flushed
  SIGHUP             open the operations log anew, as after its rotation,
                     and read tokens and certificate again";

pub(super) const MIGRATE: &str = "\
Examples:
  DATABASE_URL=postgres://owner:secret@localhost:5432/balance balance migrate";

pub(super) const VERIFY: &str = "\
Examples:
  balance verify
  balance verify --operations-log operations.log operations.log.1

Exit codes:
  0  all is as it must be
  1  something is wrong: each finding is a line of standard output
  2  the check came to no end: no connection, an unreadable file, Ctrl-C";

pub(super) const COMPLETIONS: &str = "\
Examples:
  source <(balance completions bash)    for this shell only
  balance completions bash > ~/.local/share/bash-completion/completions/balance
  balance completions zsh > ~/.zfunc/_balance
  balance completions fish > ~/.config/fish/completions/balance.fish

Notes:
  zsh looks into ~/.zfunc with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc.";

pub(super) const MAN: &str = "\
Examples:
  balance man | man -l -
  balance man serve | man -l -
  balance man --directory ~/.local/share/man/man1    then: man balance-serve";
