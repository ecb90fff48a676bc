//! Flags that say which requests are meant.

use http::Method;
use tp_protocol::engage::filter::{Filter, HeaderRule, PathRule, parse_method};

use crate::error::{CliError, Result};

/// Which requests. Each kind of rule that is given has to match; without any, all traffic does.
#[derive(clap::Args, Clone, Debug, Default)]
pub(in crate::cli) struct FilterArgs {
    /// Only requests with this header, given several times with all of them; `=~` takes a regular expression that matches
    /// the whole value, NAME can be `baggage:KEY` or `tracestate:KEY`
    #[arg(long = "http-header", value_name = "NAME=VALUE", help_heading = "Filter options")]
    headers: Vec<HeaderRule>,
    /// Only requests with this method, given several times with one of them
    #[arg(long = "http-method", value_name = "METHOD", value_parser = parse_method, help_heading = "Filter options")]
    methods: Vec<Method>,
    /// Only requests for this path, without the query; of all options for paths, one has to match
    #[arg(long, value_name = "PATH", value_parser = PathRule::equal, help_heading = "Filter options")]
    http_path_equal: Vec<PathRule>,
    /// Only requests for paths that begin with this text
    #[arg(long, value_name = "PREFIX", value_parser = PathRule::prefix, help_heading = "Filter options")]
    http_path_prefix: Vec<PathRule>,
    /// Only requests for paths that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX", value_parser = PathRule::regex, help_heading = "Filter options")]
    http_path_regex: Vec<PathRule>,
    /// Only calls of this gRPC service or method
    #[arg(long, value_name = "SERVICE[/METHOD]", value_parser = PathRule::grpc, help_heading = "Filter options")]
    grpc: Vec<PathRule>,
}

impl FilterArgs {
    /// The rules as one filter.
    ///
    /// # Errors
    /// Usage errors: too many rules, or some that contradict each other.
    pub(super) fn filter(&self) -> Result<Filter> {
        let paths = [&self.http_path_equal, &self.http_path_prefix, &self.http_path_regex, &self.grpc];
        let paths = paths.into_iter().flatten().cloned().collect();
        Filter::new(self.headers.clone(), self.methods.clone(), paths).map_err(|e| CliError::usage(e.to_string()))
    }
}
