//! Who STS says that it was: `arn:PARTITION:sts::ACCOUNT:assumed-role/ROLE/SESSION` and `AROA...:SESSION`.

/// Most bytes of an ARN (IAM's limit is below).
const MAX_ARN_BYTES: usize = 512;

/// A role under which somebody acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssumedRole {
    /// `aws`, `aws-cn`, ...
    pub partition: String,
    /// Twelve digits.
    pub account: String,
    /// The role's name. STS does not tell its path, and no two roles of an account share a name.
    pub role: String,
    /// What whoever assumed the role called it: an ECS task's id, or anything.
    pub session: String,
}

/// What is wrong with what STS said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// A user, a root account, a federated user.
    #[error(
        "the credentials are not those of an assumed role; a task role's or an instance role's are"
    )]
    NotARole,
    /// The ARN is not as AWS writes it.
    #[error("STS named the caller in a form that is not known")]
    Form,
    /// Two fields of one answer name different callers.
    #[error("STS's answer contradicts itself")]
    Contradiction,
}

impl AssumedRole {
    /// Reads the ARN of STS's answer.
    ///
    /// # Errors
    /// When it is not that of an assumed role, with exactly the three parts.
    pub fn parse(arn: &str) -> Result<Self, CallerError> {
        if arn.len() > MAX_ARN_BYTES {
            return Err(CallerError::Form);
        }
        let fields: Vec<&str> = arn.split(':').collect();
        let ["arn", partition, service, "", account, resource] = fields.as_slice() else {
            return Err(CallerError::Form);
        };
        if !is_account(account) && !account.is_empty() {
            return Err(CallerError::Form);
        }
        let parts: Vec<&str> = resource.split('/').collect();
        let (["assumed-role", role, session], "sts") = (parts.as_slice(), *service) else {
            return Err(CallerError::NotARole);
        };
        let known = is_partition(partition) && is_account(account);
        if !known || !is_name(role, 1) || !is_name(session, 2) {
            return Err(CallerError::Form);
        }
        Ok(Self {
            partition: (*partition).to_owned(),
            account: (*account).to_owned(),
            role: (*role).to_owned(),
            session: (*session).to_owned(),
        })
    }

    /// The role's own ARN, without its path: what registrations name.
    #[must_use]
    pub fn role_arn(&self) -> String {
        let Self {
            partition,
            account,
            role,
            ..
        } = self;
        format!("arn:{partition}:iam::{account}:role/{role}")
    }

    /// The role's unique id (`AROA...`) out of the answer's `UserId`. A role that is deleted and made again
    /// under its name has another.
    ///
    /// # Errors
    /// When it is not the id of a role, or names another session than the ARN.
    pub fn role_id<'a>(&self, user_id: &'a str) -> Result<&'a str, CallerError> {
        let (id, session) = user_id.split_once(':').ok_or(CallerError::Form)?;
        let letters = id.strip_prefix("AROA").ok_or(CallerError::NotARole)?;
        let known = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
        // IAM's ids have 16 to 128 characters.
        if !(16..=128).contains(&id.len()) || !letters.bytes().all(known) {
            return Err(CallerError::Form);
        }
        if session != self.session {
            return Err(CallerError::Contradiction);
        }
        Ok(id)
    }
}

/// Checks a role's ARN as registrations name it.
///
/// # Errors
/// Why no attested role ever has it, as the end of a sentence that began with the ARN.
pub fn check_role_arn(arn: &str, accounts: &[&str]) -> Result<(), String> {
    let fields: Vec<&str> = arn.split(':').collect();
    let ["arn", partition, "iam", "", account, resource] = fields.as_slice() else {
        return Err("is not like arn:aws:iam::123456789012:role/NAME".to_owned());
    };
    let role = resource.strip_prefix("role/").unwrap_or_default();
    if let Some((_, name)) = role.rsplit_once('/') {
        return Err(format!(
            "has a path, and STS does not tell it; write arn:{partition}:iam::{account}:role/{name}"
        ));
    }
    if !is_partition(partition) || !is_account(account) || !is_name(role, 1) {
        return Err("is not like arn:aws:iam::123456789012:role/NAME".to_owned());
    }
    if !accounts.contains(account) {
        return Err("is of an account that no AttestorConfig takes".to_owned());
    }
    Ok(())
}

/// Whether a text is an account's number.
#[must_use]
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_partition(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    text.starts_with("aws") && text.len() <= 16 && text.bytes().all(known)
}

/// IAM's names of roles and sessions: up to 64 of `[A-Za-z0-9_+=,.@-]`.
fn is_name(text: &str, least: usize) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    (least..=64).contains(&text.len()) && text.bytes().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:sts::123456789012:assumed-role/orders/0f5c";

    #[test]
    fn an_assumed_role_is_read_and_named_as_the_role() {
        let role = AssumedRole::parse(ARN).unwrap();
        assert_eq!(role.role_arn(), "arn:aws:iam::123456789012:role/orders");
        assert_eq!(
            (role.account.as_str(), role.session.as_str()),
            ("123456789012", "0f5c")
        );
        let china =
            AssumedRole::parse("arn:aws-cn:sts::123456789012:assumed-role/a+=,.@-_b/s.1").unwrap();
        assert_eq!(
            china.role_arn(),
            "arn:aws-cn:iam::123456789012:role/a+=,.@-_b"
        );
    }

    #[test]
    fn near_misses_of_an_assumed_role_are_refused() {
        use CallerError::{Form, NotARole};
        for (arn, error) in [
            ("arn:aws:iam::123456789012:user/alice", NotARole),
            ("arn:aws:iam::123456789012:root", NotARole),
            ("arn:aws:sts::123456789012:federated-user/alice", NotARole),
            (
                "arn:aws:iam::123456789012:assumed-role/orders/0f5c",
                NotARole,
            ),
            ("arn:aws:sts::123456789012:assumed-role/orders", NotARole),
            (
                "arn:aws:sts::123456789012:assumed-role/path/orders/0f5c",
                NotARole,
            ),
            (
                "arn:aws:sts::123456789012:assumed-role/orders/0f5c/",
                NotARole,
            ),
            (
                "arn:aws:sts::123456789012:Assumed-Role/orders/0f5c",
                NotARole,
            ),
            ("arn:aws:sts::123456789012:assumed-role//0f5c", Form),
            ("arn:aws:sts::123456789012:assumed-role/orders/x", Form),
            ("arn:aws:sts::123456789012:assumed-role/orders/0f:5c", Form),
            ("arn:aws:sts::123456789012:assumed-role/ord*rs/0f5c", Form),
            (
                "arn:aws:sts::123456789012:assumed-role/ord\u{e9}rs/0f5c",
                Form,
            ),
            ("arn:aws:sts::12345678901:assumed-role/orders/0f5c", Form),
            ("arn:aws:sts::12345678901a:assumed-role/orders/0f5c", Form),
            ("arn:aws:sts:::assumed-role/orders/0f5c", Form),
            ("arn:evil:sts::123456789012:assumed-role/orders/0f5c", Form),
            (
                "arn:aws:sts:eu-west-1:123456789012:assumed-role/orders/0f5c",
                Form,
            ),
            ("ARN:aws:sts::123456789012:assumed-role/orders/0f5c", Form),
            (" arn:aws:sts::123456789012:assumed-role/orders/0f5c", Form),
            ("", Form),
        ] {
            assert_eq!(AssumedRole::parse(arn), Err(error), "{arn}");
        }
        let long = format!(
            "arn:aws:sts::123456789012:assumed-role/{}/0f5c",
            "r".repeat(65)
        );
        assert_eq!(AssumedRole::parse(&long), Err(Form));
    }

    #[test]
    fn a_registration_names_a_role_as_sts_will() {
        let check = |arn| check_role_arn(arn, &["123456789012"]);
        assert_eq!(check("arn:aws:iam::123456789012:role/orders"), Ok(()));
        for (arn, says) in [
            ("arn:aws:iam::123456789012:role/team/orders", "role/orders"),
            ("arn:aws:iam::123456789012:role/service-role/", "path"),
            ("arn:aws:iam::999999999999:role/orders", "account"),
            (
                "arn:aws:sts::123456789012:assumed-role/orders/x",
                "is not like",
            ),
            ("arn:aws:iam::123456789012:user/alice", "is not like"),
            ("arn:aws:iam::123456789012:role/ord*", "is not like"),
            ("orders", "is not like"),
        ] {
            let problem = check(arn).unwrap_err();
            assert!(problem.contains(says), "{arn}: {problem}");
        }
    }

    #[test]
    fn the_user_id_must_be_a_roles_and_of_the_same_session() {
        let role = AssumedRole::parse(ARN).unwrap();
        let id = "AROA3XFRBF535PLBIFPI4";
        assert_eq!(role.role_id(&format!("{id}:0f5c")), Ok(id));
        for (user_id, error) in [
            (id.to_owned(), CallerError::Form),
            (format!("{id}:other"), CallerError::Contradiction),
            (format!("{id}:0f5c:0f5c"), CallerError::Contradiction),
            (
                "AIDA3XFRBF535PLBIFPI4:0f5c".to_owned(),
                CallerError::NotARole,
            ),
            ("AROA:0f5c".to_owned(), CallerError::Form),
            ("AROA3XFRBF535PLBIFPi4:0f5c".to_owned(), CallerError::Form),
            (format!("AROA{}:0f5c", "A".repeat(125)), CallerError::Form),
        ] {
            assert_eq!(role.role_id(&user_id), Err(error), "{user_id}");
        }
    }
}
