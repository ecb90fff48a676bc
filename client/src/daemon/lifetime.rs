//! When a connection has no reason to go on. A pure core: the daemon asks it when to look again.
//!
//! A connection is held (it ends with the stream of the CLI that made it, after a short grace) or detached (it ends by
//! `tp quit`, or when it was idle for longer than its limit). A daemon that nobody asks to connect ends as well: the CLI
//! that made its container is gone.

use std::time::{Duration, Instant};

/// How long a daemon waits for the first `Connect`.
const CONNECT_WAIT: Duration = Duration::from_secs(30);

/// How long a held connection outlives its last holder: a CLI whose stream broke can take it up again.
const HOLDER_GRACE: Duration = Duration::from_secs(3);

/// Why the daemon ends, and with which exit code. The init of the container passes it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Asked to, or its holder is gone.
    Quit = 0,
    /// Idle for longer than its limit.
    Idle = 3,
    /// Nobody asked to connect.
    NeverAsked = 4,
}

/// Who keeps the connection alive.
#[derive(Debug)]
pub(crate) struct Lifetime {
    since: Instant,
    mode: Mode,
    holders: usize,
    holder_gone: Instant,
    idle_limit: Option<Duration>,
    active: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Waiting for `Connect`.
    Fresh,
    /// Ends with its holders.
    Held,
    /// Ends by `tp quit` or when idle.
    Detached,
}

impl Lifetime {
    /// A daemon that was not asked to connect yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, mode: Mode::Fresh, holders: 0, holder_gone: now, idle_limit: None, active: now }
    }

    /// Whether the connection ends with its holders.
    pub(crate) fn is_held(&self) -> bool {
        self.mode == Mode::Held
    }

    /// Makes the connection end with its holders, unless it was detached: then somebody was told that it stays. `now`
    /// counts as the moment the last holder left when there is none.
    pub(crate) fn hold(&mut self, now: Instant) {
        if self.mode == Mode::Fresh {
            self.mode = Mode::Held;
            self.holder_gone = now;
        }
    }

    /// Makes the connection go on without holders.
    pub(crate) fn detach(&mut self, now: Instant) {
        self.mode = Mode::Detached;
        self.active = now;
    }

    /// Counts a holder in.
    pub(crate) fn on_holder(&mut self) {
        self.holders += 1;
    }

    /// Counts a holder out.
    pub(crate) fn on_holder_gone(&mut self, now: Instant) {
        self.holders -= 1;
        self.holder_gone = now;
    }

    /// Sets how long a detached connection may be idle; `None` for ever.
    pub(crate) fn set_idle_limit(&mut self, limit: Option<Duration>) {
        self.idle_limit = limit;
    }

    /// Notes that there was traffic or an open flow at `at`.
    pub(crate) fn on_activity(&mut self, at: Instant) {
        self.active = self.active.max(at);
    }

    /// When and why the connection ends if nothing happens until then.
    pub(crate) fn poll_timeout(&self) -> Option<(Instant, End)> {
        match self.mode {
            Mode::Fresh => Some((self.since + CONNECT_WAIT, End::NeverAsked)),
            Mode::Held if self.holders == 0 => Some((self.holder_gone + HOLDER_GRACE, End::Quit)),
            Mode::Held => None,
            Mode::Detached => self.idle_limit.map(|limit| (self.active + limit, End::Idle)),
        }
    }

    /// Why the connection ends at `now`, if it does.
    pub(crate) fn handle_timeout(&self, now: Instant) -> Option<End> {
        self.poll_timeout().filter(|(at, _)| *at <= now).map(|(_, end)| end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn daemon_that_nobody_asks_ends() {
        let start = Instant::now();
        let life = Lifetime::new(start);
        assert_eq!(life.handle_timeout(start + CONNECT_WAIT - SECOND), None);
        assert_eq!(life.handle_timeout(start + CONNECT_WAIT), Some(End::NeverAsked));
    }

    #[test]
    fn held_connection_ends_a_grace_after_its_last_holder() {
        let start = Instant::now();
        let mut life = Lifetime::new(start);
        life.hold(start);
        life.on_holder();
        life.on_holder();
        life.on_holder_gone(start);
        assert_eq!(life.poll_timeout(), None);
        life.on_holder_gone(start + SECOND);
        assert_eq!(life.handle_timeout(start + SECOND), None);
        assert_eq!(life.handle_timeout(start + SECOND + HOLDER_GRACE), Some(End::Quit));
        life.on_holder();
        assert_eq!(life.poll_timeout(), None);
    }

    #[test]
    fn detached_connection_ends_only_when_idle_for_its_limit() {
        let start = Instant::now();
        let mut life = Lifetime::new(start);
        life.hold(start);
        life.on_holder();
        life.detach(start);
        life.on_holder_gone(start);
        life.hold(start);
        assert_eq!(life.poll_timeout(), None);
        life.set_idle_limit(Some(60 * SECOND));
        life.on_activity(start + 30 * SECOND);
        life.on_activity(start);
        assert_eq!(life.handle_timeout(start + 89 * SECOND), None);
        assert_eq!(life.handle_timeout(start + 90 * SECOND), Some(End::Idle));
    }
}
