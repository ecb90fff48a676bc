//! Logs to stderr, as JSON lines or for people. Panics are logged with their place.

use std::panic::PanicHookInfo;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{Log, LogFormat};

/// Starts logging. Called once; the configuration has checked the level.
pub fn start(log: &Log) {
    let filter = filter(&log.level).unwrap_or_default();
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let layer = match log.format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Text => layer.boxed(),
    };
    tracing_subscriber::registry().with(layer).with(filter).init();
    std::panic::set_hook(Box::new(on_panic));
}

/// Reads a level, or levels per module. A level alone is that of tp's own modules: libraries stay at `info`, as what
/// they say below it (each HTTP/2 frame, for example) helps only those who ask for them by name.
///
/// `Targets`, not `EnvFilter`: more is not needed, and it comes without a regex engine.
///
/// # Errors
/// When `level` is neither.
pub fn filter(level: &str) -> Result<Targets, ParseError> {
    let asked: Targets = level.parse()?;
    let default = asked.default_level().unwrap_or(LevelFilter::INFO);
    let libraries = default.min(LevelFilter::INFO);
    Ok(Targets::new().with_target("tp_", default).with_targets(asked).with_default(libraries))
}

fn on_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string);
    let message = panic.payload_as_str().unwrap_or("unknown");
    tracing::error!(location, message, "panic");
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_level_alone_is_that_of_our_own_modules() {
        let filter = filter("debug").unwrap();
        assert!(
            filter.would_enable("tp_manager::lane", &Level::DEBUG) && filter.would_enable("tp_tunnel", &Level::DEBUG)
        );
        assert!(filter.would_enable("h2", &Level::INFO) && !filter.would_enable("h2", &Level::DEBUG));
        assert!(!filter.would_enable("tp_manager", &Level::TRACE));
    }

    #[test]
    fn modules_can_be_named() {
        let filter = filter("warn,tp_manager::dial=trace,h2=debug").unwrap();
        assert!(filter.would_enable("tp_manager::dial", &Level::TRACE) && filter.would_enable("h2", &Level::DEBUG));
        assert!(!filter.would_enable("tp_manager::lane", &Level::INFO) && !filter.would_enable("kube", &Level::INFO));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(super::filter("loud=st").is_err() && super::filter("a=b=c").is_err());
    }
}
