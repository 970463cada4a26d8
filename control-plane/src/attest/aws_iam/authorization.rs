//! The `Authorization` header of AWS Signature Version 4, read strictly enough to be written anew.

/// Most headers that a signature may cover.
const MAX_SIGNED: usize = 16;

/// A read header. Writing it again gives what the signer wrote, or another spelling of the same.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Authorization<'a> {
    pub(super) access_key_id: &'a str,
    /// `YYYYMMDD`.
    pub(super) date: &'a str,
    pub(super) region: &'a str,
    /// Lower case, sorted, each once.
    pub(super) signed_headers: Vec<&'a str>,
    signature: &'a str,
}

impl std::fmt::Debug for Authorization<'_> {
    /// Without the signature: together with the other headers it is as good as the credentials, for minutes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorization")
            .field("region", &self.region)
            .field("signed_headers", &self.signed_headers)
            .finish_non_exhaustive()
    }
}

impl<'a> Authorization<'a> {
    /// Reads `AWS4-HMAC-SHA256 Credential=.../.../.../sts/aws4_request, SignedHeaders=..., Signature=...`.
    ///
    /// # Errors
    /// Which rule it breaks.
    pub(super) fn parse(value: &'a str) -> Result<Self, &'static str> {
        let parameters = value
            .strip_prefix("AWS4-HMAC-SHA256 ")
            .ok_or("Authorization is not AWS4-HMAC-SHA256")?;
        let parts: Vec<&str> = parameters.split(',').collect();
        let [credential, signed, signature] = parts.as_slice() else {
            return Err(
                "Authorization does not have exactly Credential, SignedHeaders and Signature",
            );
        };
        let after = |text: &'a str, name: &str| text.trim_start_matches(' ').strip_prefix(name);
        let credential =
            after(credential, "Credential=").ok_or("Authorization has no Credential")?;
        let signed = after(signed, "SignedHeaders=").ok_or("Authorization has no SignedHeaders")?;
        let signature = after(signature, "Signature=").ok_or("Authorization has no Signature")?;

        let scope: Vec<&str> = credential.split('/').collect();
        let [access_key_id, date, region, "sts", "aws4_request"] = scope.as_slice() else {
            return Err("the credential scope is not KEY/DATE/REGION/sts/aws4_request");
        };
        let is_key = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
        if !(16..=128).contains(&access_key_id.len()) || !access_key_id.bytes().all(is_key) {
            return Err("the credential scope names no access key");
        }
        if date.len() != 8 || !date.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("the credential scope has no date");
        }
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if signature.len() != 64 || !signature.bytes().all(is_hex) {
            return Err("the signature is not 64 hexadecimal digits");
        }
        Ok(Self {
            access_key_id,
            date,
            region,
            signed_headers: signed_headers(signed)?,
            signature,
        })
    }

    /// Whether a header is covered by the signature.
    pub(super) fn covers(&self, name: &str) -> bool {
        self.signed_headers.contains(&name)
    }

    /// The header as this process sends it.
    pub(super) fn to_value(&self) -> String {
        let Self {
            access_key_id,
            date,
            region,
            signature,
            ..
        } = self;
        let signed = self.signed_headers.join(";");
        format!(
            "AWS4-HMAC-SHA256 Credential={access_key_id}/{date}/{region}/sts/aws4_request, SignedHeaders={signed}, Signature={signature}"
        )
    }
}

fn signed_headers(text: &str) -> Result<Vec<&str>, &'static str> {
    let names: Vec<&str> = text.split(';').take(MAX_SIGNED + 1).collect();
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let well_formed = |name: &&str| !name.is_empty() && name.bytes().all(is_name);
    if names.len() > MAX_SIGNED || !names.iter().all(well_formed) {
        return Err("SignedHeaders has names that are not in lower case, or too many");
    }
    if !names.is_sorted_by(|one, other| one < other) {
        return Err("SignedHeaders is not sorted, or has a name twice");
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNATURE: &str = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";

    fn header(scope: &str, signed: &str, signature: &str) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={signed}, Signature={signature}"
        )
    }

    const SCOPE: &str = "AKIDEXAMPLE12345/20150830/us-east-1/sts/aws4_request";

    #[test]
    fn a_header_is_written_as_it_was_read() {
        let value = header(SCOPE, "content-type;host;x-amz-date", SIGNATURE);
        let read = Authorization::parse(&value).unwrap();
        assert_eq!((read.date, read.region), ("20150830", "us-east-1"));
        assert!(read.covers("host") && !read.covers("x-sidewind-key"));
        assert_eq!(read.to_value(), value);
        let without_spaces = value.replace(", ", ",");
        assert_eq!(
            Authorization::parse(&without_spaces).unwrap().to_value(),
            value
        );
        assert!(!format!("{read:?}").contains(SIGNATURE));
        assert!(!format!("{read:?}").contains("AKID"));
    }

    #[test]
    fn near_misses_of_the_header_are_refused() {
        let signed = "host;x-amz-date";
        for (bad, why) in [
            (String::new(), "AWS4-HMAC"),
            (
                header(SCOPE, signed, SIGNATURE).replace("HMAC", "ECDSA-P256"),
                "AWS4-HMAC",
            ),
            (
                header(SCOPE, signed, SIGNATURE).replace("AWS4", "aws4"),
                "AWS4-HMAC",
            ),
            (
                header(SCOPE, signed, SIGNATURE) + ", Signature=" + SIGNATURE,
                "exactly",
            ),
            (header(SCOPE, signed, SIGNATURE) + ",", "exactly"),
            (
                header(SCOPE, signed, SIGNATURE).replace("SignedHeaders", "signedheaders"),
                "SignedHeaders",
            ),
            (
                header(&SCOPE.replace("/sts/", "/iam/"), signed, SIGNATURE),
                "scope",
            ),
            (
                header(
                    &SCOPE.replace("aws4_request", "aws4_request/x"),
                    signed,
                    SIGNATURE,
                ),
                "scope",
            ),
            (
                header(
                    &SCOPE.replace("us-east-1", "us-east-1/x"),
                    signed,
                    SIGNATURE,
                ),
                "scope",
            ),
            (
                header(&SCOPE.replace("AKID", "akid"), signed, SIGNATURE),
                "access key",
            ),
            (
                header(&SCOPE.replace("20150830", "2015083"), signed, SIGNATURE),
                "date",
            ),
            (
                header(SCOPE, signed, &SIGNATURE.to_uppercase()),
                "hexadecimal",
            ),
            (header(SCOPE, signed, &SIGNATURE[1..]), "hexadecimal"),
            (header(SCOPE, "", SIGNATURE), "lower case"),
            (header(SCOPE, "Host;x-amz-date", SIGNATURE), "lower case"),
            (header(SCOPE, "host;;x-amz-date", SIGNATURE), "lower case"),
            (header(SCOPE, "x-amz-date;host", SIGNATURE), "sorted"),
            (header(SCOPE, "host;host", SIGNATURE), "twice"),
            (
                header(SCOPE, &vec!["h"; 10_000].join(";"), SIGNATURE),
                "too many",
            ),
        ] {
            let error = Authorization::parse(&bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
