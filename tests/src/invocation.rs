//! One run of a program: where, as whom, with what; to its end, or as a process beside the test.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::binaries::is_installed;
use crate::place::Place;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait::within;

/// A program to be run in a [`Place`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Invocation {
    place: Place,
    program: OsString,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    user: Option<u32>,
    capabilities: Vec<&'static str>,
    directory: Option<PathBuf>,
    hostname: Option<String>,
    input: Vec<u8>,
    timeout: Duration,
}

impl Invocation {
    pub(crate) fn new(place: Place, program: OsString) -> Self {
        Self {
            place,
            program,
            arguments: Vec::new(),
            variables: Vec::new(),
            user: None,
            capabilities: Vec::new(),
            directory: None,
            hostname: None,
            input: Vec::new(),
            timeout: Duration::from_secs(60),
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    /// Has another program run it: its words, before this program's own.
    pub fn by(mut self, words: &[&str]) -> Self {
        let own = std::mem::take(&mut self.arguments);
        let program = std::mem::take(&mut self.program);
        let mut words = words.iter().map(OsString::from).chain([program]).chain(own);
        self.program = words.next().unwrap_or_default();
        self.arguments = words.collect();
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs it under this user and group number, which needs root; with none, as the test's own user.
    pub fn user(mut self, uid: impl Into<Option<u32>>) -> Self {
        self.user = uid.into();
        self
    }

    /// Leaves its user these capabilities, named as `setpriv` does; none by default.
    pub fn capabilities(mut self, names: &[&'static str]) -> Self {
        self.capabilities = names.to_vec();
        self
    }

    /// Sets the working directory.
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directory = Some(path.into());
        self
    }

    /// Has the machine be called so for it, which needs root.
    pub fn hostname(mut self, name: &str) -> Self {
        self.hostname = Some(name.to_owned());
        self
    }

    /// What it reads on standard input; nothing by default.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// How long [`Invocation::finish`] waits; 60 s by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started, or has not ended in time.
    #[track_caller]
    pub fn finish(self) -> Finished {
        let described = self.describe();
        let (mut output, mut errors) = (temporary(), temporary());
        let mut child = self
            .command()
            .stdin(self.stdin())
            .stdout(output.try_clone().expect("a file descriptor"))
            .stderr(errors.try_clone().expect("a file descriptor"))
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {described}: {error}"));
        let status = within(self.timeout, || {
            child.try_wait().expect("a child of one's own")
        });
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (stdout, stderr) = (read_all(&mut output), read_all(&mut errors));
        let Some(status) = status else {
            panic!(
                "{described} did not end within {:?}\n{}{}",
                self.timeout,
                text(&stdout),
                text(&stderr)
            );
        };
        Finished {
            described,
            status,
            stdout,
            stderr,
        }
    }

    /// Starts it beside the test, with its output in files of `scratch` called after `name`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(self, name: &str, scratch: &Scratch) -> Process {
        let described = self.describe();
        let log = |extension: &str| {
            let path = scratch.join(format!("{name}.{extension}"));
            let file = std::fs::File::options()
                .create(true)
                .append(true)
                .open(&path);
            (
                file.unwrap_or_else(|error| panic!("cannot write {path:?}: {error}")),
                path,
            )
        };
        let (output, output_path) = log("out");
        let (errors, errors_path) = log("err");
        let child = self
            .command()
            .stdin(self.stdin())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {described}: {error}"));
        Process::new(name, child, output_path, errors_path)
    }

    /// `ip netns exec` enters the namespace and gives it its own /etc/hosts; `setpriv` changes the user and has the
    /// program killed when the test dies. Both replace themselves, so that the child is the program.
    fn command(&self) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Place::Namespace(name) = &self.place {
            words.extend(["ip", "netns", "exec", name].map(OsString::from));
        }
        if let Some(name) = &self.hostname {
            let rename = r#"echo "$0" >/proc/sys/kernel/hostname && exec "$@""#;
            words.extend(["unshare", "--uts", "sh", "-c", rename, name].map(OsString::from));
        }
        // Part of util-linux, and so on nearly every machine; indispensable only for changing the user.
        if self.user.is_some() || is_installed("setpriv") {
            words.extend(["setpriv", "--pdeathsig", "KILL"].map(OsString::from));
            if let Some(uid) = self.user {
                words.push(format!("--reuid={uid}").into());
                words.push(format!("--regid={uid}").into());
                words.push("--clear-groups".into());
                if !self.capabilities.is_empty() {
                    let names: Vec<String> = self
                        .capabilities
                        .iter()
                        .map(|name| format!("+{name}"))
                        .collect();
                    let names = names.join(",");
                    words.push(format!("--inh-caps={names}").into());
                    words.push(format!("--ambient-caps={names}").into());
                }
            }
            words.push("--".into());
        }
        words.push(self.program.clone());
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).args(&self.arguments);
        // A proxy of the machine's own must not come between.
        for name in [
            "http_proxy",
            "https_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "all_proxy",
            "NO_PROXY",
            "no_proxy",
        ] {
            command.env_remove(name);
        }
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SIDEWIND_"))
        {
            command.env_remove(name);
        }
        command
            .env("LC_ALL", "C")
            .envs(self.variables.iter().cloned());
        command.current_dir(self.directory.clone().unwrap_or_else(|| "/".into()));
        command
    }

    fn stdin(&self) -> Stdio {
        if self.input.is_empty() {
            return Stdio::null();
        }
        let mut file = temporary();
        file.write_all(&self.input)
            .and_then(|()| file.rewind())
            .expect("a temporary file");
        file.into()
    }

    fn describe(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.arguments);
        words
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    described: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote on standard output.
    pub stdout: Vec<u8>,
    /// What it wrote on standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Standard output as text.
    pub fn out(&self) -> String {
        text(&self.stdout)
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        text(&self.stderr)
    }

    /// The exit code; none when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output of a program that must have succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn success(&self) -> String {
        assert!(
            self.status.success(),
            "{} ended with {}\n{}{}",
            self.described,
            self.status,
            self.out(),
            self.err()
        );
        self.out()
    }

    /// Standard output and error of a program that must have failed.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    pub fn failure(&self) -> String {
        assert!(
            !self.status.success(),
            "{} succeeded\n{}{}",
            self.described,
            self.out(),
            self.err()
        );
        self.out() + &self.err()
    }
}

fn temporary() -> std::fs::File {
    tempfile::tempfile().expect("a temporary file")
}

fn read_all(file: &mut std::fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_end(&mut bytes))
        .expect("a temporary file");
    bytes
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
