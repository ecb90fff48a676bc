//! Logs to stderr, as JSON lines or for people. Panics are logged with their place.

use std::panic::PanicHookInfo;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{Log, LogFormat};

/// Starts logging. Called once; the configuration has checked the level.
pub fn start(log: &Log) {
    // Targets, not EnvFilter: a level per module is all that is needed, and it comes without a regex engine.
    let filter: Targets = log.level.parse().unwrap_or_else(|_| Targets::default());
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let layer = match log.format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Text => layer.boxed(),
    };
    tracing_subscriber::registry().with(layer).with(filter).init();
    std::panic::set_hook(Box::new(on_panic));
}

fn on_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string);
    let message = panic.payload_as_str().unwrap_or("unknown");
    tracing::error!(location, message, "panic");
}
