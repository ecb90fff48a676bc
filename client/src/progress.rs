//! What is being waited for, on stderr: a line with a spinner and the time on a terminal, nothing elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the line is drawn.
const TICK: Duration = Duration::from_millis(100);

/// A line that says what is being waited for; it disappears with the value.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Begins, with nothing to say yet. `limit` is how long the whole may take, if that is known.
    pub(crate) fn start(limit: Option<Duration>) -> Self {
        let terminal = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let of = limit.map(|limit| format!(" of {}", crate::config::value::HumanDuration(limit))).unwrap_or_default();
        let style = ProgressStyle::with_template(&format!("{{spinner}} {{wide_msg}} {{elapsed}}{of}"));
        let bar = ProgressBar::with_draw_target(None, target).with_style(style.expect("the template is valid"));
        if terminal {
            bar.enable_steady_tick(TICK);
        }
        Self { bar }
    }

    /// Says what is being waited for: lower-case, without a full stop.
    pub(crate) fn step(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
