//! Finds the filters that match a request, among many (pure).

use std::collections::HashMap;

use tp_protocol::engage::filter::{Filter, Head, PathRule, Selector};
use tp_protocol::engage::pattern::Pattern;

/// Filters by what they want to be equal, so that a request is compared with few of them.
///
/// People tell themselves apart by one header mostly: 250 of them cost one lookup then. What wants nothing to be equal
/// (prefixes, regular expressions) is compared one by one.
#[derive(Debug, Default)]
pub(crate) struct FilterIndex {
    /// Filters that want a header to have a value.
    by_header: Vec<(Selector, ByValue)>,
    /// Filters that want one of a few paths.
    by_path: HashMap<String, Vec<usize>>,
    /// All others.
    rest: Vec<usize>,
}

/// Positions by the value that they want.
type ByValue = HashMap<Vec<u8>, Vec<usize>>;

impl FilterIndex {
    /// Sorts filters in. They are known by their positions from then on.
    pub(crate) fn new<'a>(filters: impl Iterator<Item = &'a Filter>) -> Self {
        let mut index = Self::default();
        for (position, filter) in filters.enumerate() {
            index.insert(position, filter);
        }
        index
    }

    fn insert(&mut self, position: usize, filter: &Filter) {
        let exact = filter.headers().iter().find_map(|rule| match &rule.pattern {
            Pattern::Exact(value) => Some((&rule.selector, value)),
            Pattern::Regex(_) => None,
        });
        let paths = filter.paths().iter().map(|rule| match rule {
            PathRule::Equal(path) => Some(path),
            PathRule::Prefix(_) | PathRule::Regex(_) => None,
        });
        let paths: Option<Vec<&String>> = paths.collect();
        match (exact, paths) {
            (Some((selector, value)), _) => {
                let known = self.by_header.iter().position(|(known, _)| known == selector);
                let slot = known.unwrap_or_else(|| {
                    self.by_header.push((selector.clone(), HashMap::new()));
                    self.by_header.len() - 1
                });
                self.by_header[slot].1.entry(value.clone().into_bytes()).or_default().push(position);
            }
            (None, Some(paths)) if !paths.is_empty() => {
                for path in paths {
                    self.by_path.entry(path.clone()).or_default().push(position);
                }
            }
            (None, _) => self.rest.push(position),
        }
    }

    /// Returns the positions, in order, of those that `matches` confirms.
    pub(crate) fn find(&self, head: Head<'_>, matches: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut found = Vec::new();
        for (selector, by_value) in &self.by_header {
            if let Some(positions) = selector.value(head).and_then(|value| by_value.get(&*value)) {
                found.extend(positions.iter().copied().filter(|position| matches(*position)));
            }
        }
        let by_path = self.by_path.get(head.uri.path()).into_iter().flatten();
        found.extend(by_path.chain(&self.rest).copied().filter(|position| matches(*position)));
        found.sort_unstable();
        found.dedup();
        found
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use hyper::Request;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn filter(headers: &[String], paths: Vec<PathRule>) -> Filter {
        Filter::new(headers.iter().map(|rule| rule.parse().unwrap()).collect(), vec![], paths).unwrap()
    }

    #[test]
    fn a_request_is_compared_with_few_of_many_filters() {
        let filters: Vec<Filter> = (0..250).map(|n| filter(&[format!("x-user=user-{n}")], vec![])).collect();
        let index = FilterIndex::new(filters.iter());
        let request = Request::builder().uri("/").header("x-user", "user-17").body(()).unwrap();
        let compared = Cell::new(0);
        let found = index.find((&request).into(), |position| {
            compared.set(compared.get() + 1);
            filters[position].matches((&request).into())
        });
        assert_eq!((found, compared.get()), (vec![17], 1));
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_scan_finds(
            rules in proptest::collection::vec((0..6, select(vec!["a", "b", "c"]), select(vec!["a", "b", "c"])), 0..12),
            (user, path) in (select(vec!["a", "b", "c", "d"]), select(vec!["a", "b", "c", "d"])),
        ) {
            let filters: Vec<Filter> = rules.iter().map(|(kind, text, other)| match kind {
                0 => filter(&[format!("x-user={text}")], vec![]),
                1 => filter(&[format!("x-user=~{text}|{other}")], vec![]),
                2 => filter(&[], vec![PathRule::equal(&format!("/{text}")).unwrap(), PathRule::equal(&format!("/{other}")).unwrap()]),
                3 => filter(&[], vec![PathRule::prefix(&format!("/{text}")).unwrap()]),
                4 => filter(&[format!("x-user={text}")], vec![PathRule::equal(&format!("/{other}")).unwrap()]),
                _ => Filter::default(),
            }).collect();
            let request = Request::builder().uri(format!("/{path}")).header("x-user", user).body(()).unwrap();
            let matches = |position: usize| filters[position].matches((&request).into());
            let scan: Vec<usize> = (0..filters.len()).filter(|position| matches(*position)).collect();
            prop_assert_eq!(FilterIndex::new(filters.iter()).find((&request).into(), matches), scan);
        }
    }
}
