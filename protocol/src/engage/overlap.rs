//! Whether one request can be meant by two filters.

use std::fmt;

use super::filter::{Filter, PathRule};

/// Why two filters overlap: a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap(String);

/// Says why one request might match both filters, or `None` where certainly none does. Whether it is `None` does not
/// depend on the order.
///
/// They are told apart by one header (or member) from which they want different values, by methods, or by paths. Where
/// regular expressions meet, only how their matches begin is compared: `ann-.*` and `bob-.*` are told apart, `.*-ann` and
/// `.*-bob` are not.
pub fn overlap(a: &Filter, b: &Filter) -> Option<Overlap> {
    let headers = a.headers().iter().any(|a| b.headers().iter().any(|b| a.is_disjoint(b)));
    let methods = !a.methods().is_empty()
        && !b.methods().is_empty()
        && a.methods().iter().all(|method| !b.methods().contains(method));
    let paths = !a.paths().is_empty()
        && !b.paths().is_empty()
        && a.paths().iter().all(|a| b.paths().iter().all(|b| are_disjoint(a, b)));
    if headers || methods || paths {
        return None;
    }
    Some(Overlap(match (a.is_empty(), b.is_empty()) {
        (true, true) => "both take every request".into(),
        (true, false) => format!("one takes every request, so also those with {b}"),
        (false, true) => format!("one takes every request, so also those with {a}"),
        (false, false) if a == b => format!("both take the requests with {a}"),
        (false, false) => format!("one request can have both {a} and {b}"),
    }))
}

fn are_disjoint(a: &PathRule, b: &PathRule) -> bool {
    use PathRule::{Equal, Prefix, Regex};
    match (a, b) {
        (Equal(a), Equal(b)) => a != b,
        (Equal(path), other) | (other, Equal(path)) => !other.matches(path),
        (Prefix(a), Prefix(b)) => !a.starts_with(b.as_str()) && !b.starts_with(a.as_str()),
        (Prefix(prefix), Regex(regex)) | (Regex(regex), Prefix(prefix)) => {
            regex.is_disjoint_from_prefix(prefix.as_bytes())
        }
        (Regex(a), Regex(b)) => a.is_disjoint(b),
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    use super::*;
    use crate::engage::filter::{Head, HeaderRule, parse_method};

    fn filter(headers: &[&str], methods: &[&str], paths: &[PathRule]) -> Filter {
        let headers = headers.iter().map(|rule| rule.parse().unwrap()).collect();
        let methods = methods.iter().map(|method| parse_method(method).unwrap()).collect();
        Filter::new(headers, methods, paths.to_vec()).unwrap()
    }

    #[test]
    fn filters_are_told_apart_by_header_method_and_path() {
        let ann = filter(&["x-user=ann"], &[], &[]);
        let equal = |path| PathRule::equal(path).unwrap();
        let prefix = |path| PathRule::prefix(path).unwrap();
        let regex = |path| PathRule::regex(path).unwrap();
        let path = |rule: PathRule| filter(&[], &[], &[rule]);
        for (a, b) in [
            (ann.clone(), filter(&["x-user=bob"], &[], &[])),
            (ann.clone(), filter(&["x-team=red", "x-user=bob"], &["GET"], &[])),
            (ann, filter(&["x-user=~b.*"], &[], &[])),
            (filter(&["baggage:u=ann"], &[], &[]), filter(&["baggage:u=bob"], &[], &[])),
            (filter(&[], &["GET", "HEAD"], &[]), filter(&[], &["PUT"], &[])),
            (path(equal("/a")), path(equal("/b"))),
            (path(equal("/a")), path(prefix("/b"))),
            (path(equal("/a")), path(regex("/b.*"))),
            (path(prefix("/a")), path(prefix("/b"))),
            (path(prefix("/a/")), path(regex("/b/.*"))),
            (path(regex("/a/.*")), path(regex("/b/.*"))),
        ] {
            assert_eq!(overlap(&a, &b), None, "{a} | {b}");
            assert_eq!(overlap(&b, &a), None, "{b} | {a}");
        }
    }

    #[test]
    fn an_overlap_is_explained() {
        let all = Filter::default();
        let ann = filter(&["x-user=ann"], &[], &[]);
        let red = filter(&["x-team=red"], &["GET"], &[]);
        for (a, b, expected) in [
            (&all, &all, "both take every request"),
            (&all, &ann, "one takes every request, so also those with x-user=ann"),
            (&ann, &all, "one takes every request, so also those with x-user=ann"),
            (&ann, &ann, "both take the requests with x-user=ann"),
            (&ann, &red, "one request can have both x-user=ann and x-team=red and GET"),
        ] {
            assert_eq!(overlap(a, b).unwrap().to_string(), expected);
        }
    }

    const METHODS: [&str; 3] = ["GET", "PUT", "POST"];
    const TEXTS: [&str; 5] = ["a", "ab", "b", "ba", "c"];

    fn header_rules() -> impl Strategy<Value = Vec<HeaderRule>> {
        let name = select(vec!["x", "y", "baggage:k"]);
        let value = select(vec!["=a", "=ab", "=b", "=~a.*", "=~a?b", "=~.*b", "=~a|ba", "=~(?i)A"]);
        proptest::collection::vec((name, value).prop_map(|(n, v)| format!("{n}{v}").parse().unwrap()), 0..3)
    }

    fn path_rules() -> impl Strategy<Value = Vec<PathRule>> {
        let rule = (0..3, select(TEXTS.to_vec())).prop_map(|(kind, text)| match kind {
            0 => PathRule::equal(&format!("/{text}")).unwrap(),
            1 => PathRule::prefix(&format!("/{text}")).unwrap(),
            _ => PathRule::regex(&format!("/{text}?.*b?")).unwrap(),
        });
        proptest::collection::vec(rule, 0..3)
    }

    fn filters() -> impl Strategy<Value = Filter> {
        let methods = subsequence(METHODS.map(|method| parse_method(method).unwrap()).to_vec(), 0..3);
        (header_rules(), methods, path_rules())
            .prop_filter_map("contradiction", |(headers, methods, paths)| Filter::new(headers, methods, paths).ok())
    }

    fn requests() -> impl Strategy<Value = Request<()>> {
        let line = (select(vec!["x", "y", "baggage"]), select(TEXTS.to_vec()), any::<bool>());
        let lines = proptest::collection::vec(line, 0..4);
        (select(METHODS.to_vec()), select(TEXTS.to_vec()), lines).prop_map(|(method, path, lines)| {
            let mut request = Request::builder().method(method).uri(format!("/{path}"));
            for (name, value, member) in lines {
                request = request.header(name, if member { format!("k={value}") } else { value.into() });
            }
            request.body(()).unwrap()
        })
    }

    proptest! {
        #[test]
        fn filters_that_match_one_request_overlap(a in filters(), b in filters(), request in requests()) {
            let head = Head::from(&request);
            let found = overlap(&a, &b).is_some();
            prop_assert_eq!(found, overlap(&b, &a).is_some());
            prop_assert!(found || !(a.matches(head) && b.matches(head)), "{} | {} | {:?}", a, b, request);
        }

        #[test]
        fn a_filter_overlaps_itself(a in filters()) {
            prop_assert!(overlap(&a, &a).is_some());
        }
    }
}
