//! What STS answered, read strictly: elements and text alone, each wanted value once.

use super::arn::CallerError;

/// Most bytes of an answer.
pub(super) const MAX_ANSWER_BYTES: usize = 64 * 1024;
const MAX_ELEMENTS: usize = 64;
const MAX_DEPTH: usize = 8;

/// Whom STS took the signer of a request for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) arn: String,
    pub(super) user_id: String,
    pub(super) account: String,
}

/// Reads the answer to GetCallerIdentity.
///
/// # Errors
/// When it is anything else than one result in the form that is known.
pub(super) fn caller(body: &[u8]) -> Result<Caller, CallerError> {
    let leaves = read(body).ok_or(CallerError::Form)?;
    let results = leaves
        .iter()
        .filter(|leaf| leaf.ends("GetCallerIdentityResult"));
    if results.count() != 1 {
        return Err(CallerError::Form);
    }
    let value = |name: &str| {
        let path = ["GetCallerIdentityResponse", "GetCallerIdentityResult", name];
        only(&leaves, &path).ok_or(CallerError::Form)
    };
    Ok(Caller {
        arn: value("Arn")?,
        user_id: value("UserId")?,
        account: value("Account")?,
    })
}

/// The code of an error, like `SignatureDoesNotMatch`: the one part of it that is told on.
pub(super) fn error_code(body: &[u8]) -> Option<String> {
    let elements = read(body)?;
    let mut codes = elements.iter().filter(|element| {
        let of_error = element.path.iter().rev().nth(1) == Some(&"Error");
        of_error && element.ends("Code")
    });
    let code = codes.next()?.text.to_owned();
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.';
    let fits = (1..=64).contains(&code.len()) && code.bytes().all(known);
    fits.then_some(code)
}

/// An element that has ended, with the text directly in it.
#[derive(Debug)]
struct Element<'a> {
    path: Vec<&'a str>,
    text: &'a str,
}

impl Element<'_> {
    fn ends(&self, name: &str) -> bool {
        self.path.last().is_some_and(|last| *last == name)
    }
}

/// The text of the one element at a path, when no element of its name is anywhere else.
fn only(elements: &[Element<'_>], path: &[&str]) -> Option<String> {
    let name = path.last()?;
    let mut named = elements.iter().filter(|element| element.ends(name));
    let first = named.next().filter(|element| element.path == path)?;
    named.next().is_none().then(|| first.text.to_owned())
}

/// The elements of a document that holds nothing but elements, text and the attributes of the root; none for
/// any other, such as one with a DTD, a comment or CDATA. References in texts stay as they are written.
fn read(body: &[u8]) -> Option<Vec<Element<'_>>> {
    let text = std::str::from_utf8(body).ok()?;
    let mut rest = text.trim_start();
    if let Some(declaration) = rest.strip_prefix("<?xml ") {
        rest = declaration.split_once("?>")?.1.trim_start();
    }
    let mut open: Vec<&str> = Vec::new();
    let mut elements = Vec::new();
    let mut content = "";
    let mut started = 0;
    while !rest.is_empty() {
        let (before, tag_on) = rest.split_once('<')?;
        let (tag, after) = tag_on.split_once('>')?;
        // Between elements there is white space alone.
        if open.is_empty() && !before.trim().is_empty() {
            return None;
        }
        if let Some(name) = tag.strip_prefix('/') {
            let path = open.clone();
            if open.pop()? != name.trim_end() {
                return None;
            }
            let text = if content == name.trim_end() {
                before
            } else {
                ""
            };
            content = "";
            elements.push(Element { path, text });
        } else {
            let empty = tag.ends_with('/');
            let name = element_name(tag.trim_end_matches('/'), open.is_empty())?;
            started += 1;
            let second_root = open.is_empty() && started > 1;
            if second_root || started > MAX_ELEMENTS || open.len() >= MAX_DEPTH {
                return None;
            }
            open.push(name);
            content = name;
            if empty {
                let path = open.clone();
                elements.push(Element { path, text: "" });
                open.pop();
                content = "";
            }
        }
        rest = after;
        if open.is_empty() {
            rest = rest.trim();
        }
    }
    (open.is_empty() && started > 0).then_some(elements)
}

/// The name of a start tag. The root alone may have attributes: its namespace.
fn element_name(tag: &str, root: bool) -> Option<&str> {
    let (name, attributes) = tag
        .split_once(|c: char| c.is_ascii_whitespace())
        .unwrap_or((tag, ""));
    let attributes = attributes.trim();
    let namespace = attributes.starts_with("xmlns=") && root;
    let known = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (known && (attributes.is_empty() || namespace)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <GetCallerIdentityResult>
    <Arn>arn:aws:sts::123456789012:assumed-role/orders/0f5c</Arn>
    <UserId>AROA3XFRBF535PLBIFPI4:0f5c</UserId>
    <Account>123456789012</Account>
  </GetCallerIdentityResult>
  <ResponseMetadata>
    <RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId>
  </ResponseMetadata>
</GetCallerIdentityResponse>
"#;

    #[test]
    fn an_answer_of_sts_is_read() {
        let expected = Caller {
            arn: "arn:aws:sts::123456789012:assumed-role/orders/0f5c".to_owned(),
            user_id: "AROA3XFRBF535PLBIFPI4:0f5c".to_owned(),
            account: "123456789012".to_owned(),
        };
        assert_eq!(caller(GOOD.as_bytes()), Ok(expected.clone()));
        let declared = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{GOOD}");
        assert_eq!(caller(declared.as_bytes()), Ok(expected.clone()));
        let compact = GOOD.replace('\n', "").replace("  ", "");
        assert_eq!(caller(compact.as_bytes()), Ok(expected.clone()));
        let with_more = GOOD.replace("<Account>", "<New/><Account>");
        assert_eq!(caller(with_more.as_bytes()), Ok(expected));
    }

    #[test]
    fn near_misses_of_an_answer_are_refused() {
        let arn = "<Arn>arn:aws:sts::123456789012:assumed-role/orders/0f5c</Arn>";
        let result = &GOOD
            [GOOD.find("<GetCallerIdentityResult>").unwrap()..GOOD.find("<ResponseM").unwrap()];
        let replaced = |from: &str, to: &str| {
            let replaced = GOOD.replacen(from, to, 1);
            assert_ne!(replaced, GOOD, "{from}");
            replaced
        };
        for bad in [
            String::new(),
            " ".to_owned(),
            r#"{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Arn":"a"}}}"#.to_owned(),
            format!("{GOOD}{GOOD}"),
            format!("{GOOD}x"),
            format!("x{GOOD}"),
            format!("<!DOCTYPE x [<!ENTITY e \"arn\">]>{GOOD}"),
            format!("<!-- -->{GOOD}"),
            format!("<x>{GOOD}</x>"),
            GOOD.trim_end().strip_suffix('>').unwrap().to_owned(),
            GOOD.replace("</GetCallerIdentityResponse>", ""),
            replaced(result, &format!("{result}{result}")),
            replaced(result, &format!("{result}<GetCallerIdentityResult/>")),
            replaced(arn, &format!("{arn}{arn}")),
            replaced(arn, ""),
            replaced(arn, &format!("<More>{arn}</More>")),
            replaced(arn, &format!("{arn}<More>{arn}</More>")),
            replaced(
                arn,
                "<Arn><![CDATA[arn:aws:sts::1:assumed-role/a/b]]></Arn>",
            ),
            replaced(arn, "<Arn x=\"y\">arn</Arn>"),
            replaced("<RequestId>", "<Arn>x</Arn><RequestId>"),
            replaced("</Arn>", "</Account>"),
            replaced("GetCallerIdentityResponse xmlns", "Other xmlns")
                .replace("/GetCallerIdentityResponse", "/Other"),
            "<GetCallerIdentityResponse>".repeat(10_000),
            GOOD.replace("<New/>", "")
                .replace(arn, &format!("{arn}{}", "<N/>".repeat(100))),
        ] {
            assert_eq!(caller(bad.as_bytes()), Err(CallerError::Form), "{bad:.300}");
        }
        assert_eq!(
            caller(b"\xff<GetCallerIdentityResponse/>"),
            Err(CallerError::Form)
        );
    }

    #[test]
    fn text_beside_elements_and_references_are_no_value() {
        let split = GOOD.replace("<Arn>arn", "<Arn>x<b/>arn");
        assert_ne!(
            caller(split.as_bytes()).map(|caller| caller.arn.is_empty()),
            Ok(false)
        );
        let reference = GOOD
            .replace(":role/", ":role&#47;")
            .replace("orders", "ord&amp;ers");
        assert!(caller(reference.as_bytes()).unwrap().arn.contains('&'));
    }

    #[test]
    fn of_an_error_the_code_alone_is_told() {
        let error = |code: &str| {
            format!(
                "<ErrorResponse xmlns=\"x\"><Error><Type>Sender</Type><Code>{code}</Code><Message>a &lt; b</Message></Error></ErrorResponse>"
            )
        };
        let code = |body: String| error_code(body.as_bytes());
        assert_eq!(
            code(error("SignatureDoesNotMatch")).unwrap(),
            "SignatureDoesNotMatch"
        );
        for bad in ["", "a b", "<b>x</b>", "x\n", &"x".repeat(65)] {
            assert_eq!(code(error(bad)), None, "{bad}");
        }
        assert_eq!(code("<html><body>no</body></html>".to_owned()), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, text in "[<>/a&! =\"?]{0,80}") {
            let _ = (read(&bytes), read(text.as_bytes()));
        }
    }
}
