//! Looks at certificates before anything is started: an expired one is an error with a date, not a TLS alert.

use jiff::Timestamp;
use x509_parser::pem::Pem;

use crate::error::{CliError, Result};

/// When a certificate is valid, from its own text.
struct Validity {
    not_before: Timestamp,
    not_after: Timestamp,
}

/// Checks that `pem` begins with a certificate that is valid at `now`.
///
/// # Errors
/// User errors that name `what` (such as "the client certificate of user `x`") and the date.
pub(crate) fn check_validity(pem: &[u8], what: &str, now: Timestamp) -> Result<()> {
    let validity =
        validity_of_first(pem).map_err(|problem| CliError::user(format!("{what} cannot be read: {problem}")))?;
    if now > validity.not_after {
        return Err(CliError::user(format!("{what} expired on {}", date(validity.not_after)))
            .hint("renew it, or log in to the cluster again"));
    }
    if now < validity.not_before {
        return Err(CliError::user(format!("{what} is not valid before {}", date(validity.not_before)))
            .hint("check the clock of this machine"));
    }
    Ok(())
}

/// Checks that `pem` holds at least one PEM block of a certificate.
///
/// # Errors
/// User errors that name `what`.
pub(crate) fn check_authority(pem: &[u8], what: &str) -> Result<()> {
    match Pem::iter_from_buffer(pem).next() {
        Some(Ok(block)) if block.label == "CERTIFICATE" => Ok(()),
        Some(Ok(block)) => Err(CliError::user(format!("{what} is no certificate but a {}", block.label))),
        Some(Err(_)) | None => Err(CliError::user(format!("{what} holds no PEM certificate"))),
    }
}

fn validity_of_first(pem: &[u8]) -> Result<Validity, String> {
    for block in Pem::iter_from_buffer(pem) {
        let block = block.map_err(|e| format!("bad PEM: {e}"))?;
        if block.label != "CERTIFICATE" {
            continue;
        }
        let certificate = block.parse_x509().map_err(|e| format!("bad X.509: {e}"))?;
        let time = |seconds| Timestamp::from_second(seconds).map_err(|e| e.to_string());
        return Ok(Validity {
            not_before: time(certificate.validity().not_before.timestamp())?,
            not_after: time(certificate.validity().not_after.timestamp())?,
        });
    }
    Err("it holds no PEM certificate".to_owned())
}

/// A point in time as a person reads it, in UTC.
fn date(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> String {
        let mut params = rcgen::CertificateParams::new(vec!["x".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2024, 1, 1);
        params.not_after = rcgen::date_time_ymd(2025, 1, 1);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn at(date: &str) -> Timestamp {
        format!("{date}T00:00:00Z").parse().unwrap()
    }

    #[test]
    fn expired_certificate_is_refused_with_its_date() {
        let pem = certificate();
        assert!(check_validity(pem.as_bytes(), "it", at("2024-06-01")).is_ok());
        let late = check_validity(pem.as_bytes(), "the client certificate of user `u`", at("2025-06-01")).unwrap_err();
        assert_eq!(late.message(), "the client certificate of user `u` expired on 2025-01-01 00:00 UTC");
        let early = check_validity(pem.as_bytes(), "it", at("2023-06-01")).unwrap_err();
        assert_eq!(early.message(), "it is not valid before 2024-01-01 00:00 UTC");
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        for junk in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(check_validity(junk.as_bytes(), "it", at("2024-06-01")).is_err(), "{junk}");
        }
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(check_authority(key.as_bytes(), "it").unwrap_err().message().contains("PRIVATE KEY"));
        assert!(check_authority(certificate().as_bytes(), "it").is_ok());
    }
}
