//! Certificates in PEM, as they stand in files and in the web configuration.

use rustls::pki_types::{
    CertificateDer,
    pem::{Error, PemObject as _},
};

/// Returns all certificates of the text, at least one.
///
/// # Errors
///
/// The end of a sentence about the text. It quotes nothing: where a certificate is expected, a
/// private key may stand. The library's own error repeats the line that it is about, and that is the
/// whole key if its line breaks are gone.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err("holds no certificate; one in PEM (-----BEGIN CERTIFICATE-----) is needed"),
        Err(Error::Base64Decode(_)) => {
            Err("is not good PEM: what stands between BEGIN and END is not base64")
        }
        Err(_) => Err(
            "is not good PEM: each -----BEGIN …----- needs its -----END …-----, both on lines of their own",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_holds_no_good_certificate_is_not_quoted() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let on_one_line = key.replace('\n', " ");
        let (first, _) = key.split_once("-----END").unwrap();
        let no_base64 = key
            .replacen('M', "*", 1)
            .replace("PRIVATE KEY", "CERTIFICATE");
        let markers = "each -----BEGIN …----- needs its -----END …-----";
        for (text, reason) in [
            ("", "holds no certificate"),
            (&*key, "holds no certificate"),
            (&*on_one_line, markers),
            (first, markers),
            (&*no_base64, "is not base64"),
        ] {
            let error = certificates(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
