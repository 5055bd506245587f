//! A program's table of settings, and how it is read: flags, environment, file.

use std::borrow::Cow;
use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::{ConfigError, Values};

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its key in the file; the flag is the same with dashes, the variable the same in capitals
    /// behind the program's prefix.
    pub key: &'static str,
    /// Its default, as text; empty for none.
    pub default: &'static str,
    /// Its default with `--dev`, where that is another.
    pub dev: Option<&'static str>,
    /// Its unit, or what kind of value it takes.
    pub unit: &'static str,
    /// What it does.
    pub help: &'static str,
    /// Whether its value must not be shown.
    pub secret: bool,
}

/// A row of the table.
pub const fn setting(
    key: &'static str,
    default: &'static str,
    unit: &'static str,
    help: &'static str,
) -> Setting {
    Setting { key, default, dev: None, unit, help, secret: false }
}

/// The same, with another default with `--dev`.
pub const fn dev(setting: Setting, default: &'static str) -> Setting {
    Setting { dev: Some(default), ..setting }
}

/// A row whose value is shown nowhere.
pub const fn secret(key: &'static str, help: &'static str) -> Setting {
    Setting { key, default: "", dev: None, unit: "text", help, secret: true }
}

impl Setting {
    /// The flag, with its dashes.
    pub fn flag(&self) -> String {
        format!("--{}", self.name())
    }

    fn name(&self) -> String {
        self.key.replace('_', "-")
    }

    fn default_value(&self, dev: bool) -> &'static str {
        self.dev.filter(|_| dev).unwrap_or(self.default)
    }

    fn shown(&self, value: &str) -> String {
        if self.secret && !value.is_empty() { "********".to_owned() } else { value.to_owned() }
    }
}

/// A program that has settings.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// What it is.
    pub about: &'static str,
    /// What `--help` ends with.
    pub after_help: Cow<'static, str>,
    /// What its variables in the environment begin with.
    pub prefix: &'static str,
    /// What its flag `--dev` does, if it has that.
    pub dev: Option<&'static str>,
    /// Its settings.
    pub settings: &'static [Setting],
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed<T> {
    /// Run with this configuration.
    Run(T),
    /// Print this text and end.
    Print(String),
}

impl<T> Parsed<T> {
    /// What is made of a configuration, if there is one to run with.
    pub fn try_map<U>(
        self,
        make: impl FnOnce(T) -> Result<U, ConfigError>,
    ) -> Result<Parsed<U>, ConfigError> {
        match self {
            Self::Run(configuration) => make(configuration).map(Parsed::Run),
            Self::Print(text) => Ok(Parsed::Print(text)),
        }
    }
}

impl Program {
    /// Reads flags (without the program's name), environment and file. `environment` looks a
    /// variable up.
    pub fn read(
        &self,
        flags: impl IntoIterator<Item = String>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Parsed<Values>, ConfigError> {
        let arguments = std::iter::once(self.name.to_owned()).chain(flags);
        let matches = match self.command().try_get_matches_from(arguments) {
            Ok(matches) => matches,
            Err(e) if !e.use_stderr() => return Ok(Parsed::Print(e.to_string())),
            Err(e) => return Err(ConfigError::new(e.to_string().trim_end())),
        };
        let dev = self.dev.is_some()
            && (matches.get_flag("dev")
                || environment(&self.variable("dev")).is_some_and(|v| v == "true" || v == "1"));
        let file_path =
            matches.get_one::<String>("config").cloned().or_else(|| environment(&self.variable("config")));
        let file = match &file_path {
            None => BTreeMap::new(),
            Some(path) => self.read_file(path)?,
        };
        let chosen = |setting: &Setting, matches: &ArgMatches| {
            let flag = matches.get_one::<String>(setting.key).cloned();
            flag.or_else(|| environment(&self.variable(setting.key)))
                .or_else(|| file.get(setting.key).cloned())
                .unwrap_or_else(|| setting.default_value(dev).to_owned())
        };
        let (mut values, mut effective) = (BTreeMap::new(), Vec::new());
        for setting in self.settings {
            let value = chosen(setting, &matches);
            effective.push((setting.key.to_owned(), setting.shown(&value)));
            values.insert(setting.key, value);
        }
        Ok(Parsed::Run(Values::new(values, effective)))
    }

    /// The environment variable of a key.
    fn variable(&self, key: &str) -> String {
        format!("{}{}", self.prefix, key.to_uppercase())
    }

    /// The command line, as the table says.
    fn command(&self) -> Command {
        let mut command = Command::new(self.name)
            .version(self.version)
            .about(self.about)
            .after_help(self.after_help.to_string());
        if let Some(help) = self.dev {
            command = command.arg(Arg::new("dev").long("dev").action(ArgAction::SetTrue).help(help));
        }
        let help = format!("A TOML file with settings [env: {}]", self.variable("config"));
        command = command.arg(Arg::new("config").long("config").value_name("path").help(help));
        for setting in self.settings {
            let default = match (setting.default, setting.dev) {
                ("", None) => String::new(),
                ("", Some(dev)) => format!(" [with --dev: {dev}]"),
                (default, None) => format!(" [default: {default}]"),
                (default, Some(dev)) => format!(" [default: {default}; with --dev: {dev}]"),
            };
            let help = format!("{}{default} [env: {}]", setting.help, self.variable(setting.key));
            command = command.arg(
                Arg::new(setting.key)
                    .long(setting.name())
                    .value_name(setting.unit)
                    .allow_hyphen_values(true)
                    .help(help),
            );
        }
        command
    }

    /// Reads a file of settings into text values; arrays are joined with commas.
    fn read_file(&self, path: &str) -> Result<BTreeMap<String, String>, ConfigError> {
        let wrong = |why: String| ConfigError::new(format!("config file {path}: {why}"));
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| wrong(e.to_string()))?;
        let mut values = BTreeMap::new();
        for (key, value) in table {
            if !self.settings.iter().any(|s| s.key == key) {
                return Err(wrong(format!("there is no setting {key}")));
            }
            let text = plain(&value).ok_or_else(|| wrong(format!("{key} takes a plain value")))?;
            values.insert(key, text);
        }
        Ok(values)
    }
}

fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => {
            items.iter().map(plain).collect::<Option<Vec<_>>>().map(|texts| texts.join(","))
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Program = Program {
        name: "thing",
        version: "1.2.3",
        about: "Does things",
        after_help: Cow::Borrowed("That is all."),
        prefix: "THING_",
        dev: Some("Be small"),
        settings: &[
            setting("node_id", "1", "number", "Which one"),
            dev(setting("listen", "0.0.0.0:1", "address", "Where"), "127.0.0.1:1"),
            setting("names", "", "names", "Who"),
            secret("pass_word", "Psst"),
        ],
    };

    fn read(flags: &[&str], environment: &[(&str, &str)]) -> Result<Values, ConfigError> {
        let variable = |key: &str| {
            let found = environment.iter().find(|(k, _)| *k == key);
            found.map(|(_, value)| (*value).to_owned())
        };
        match PROGRAM.read(flags.iter().map(|f| (*f).to_owned()), variable)? {
            Parsed::Run(values) => Ok(values),
            Parsed::Print(text) => panic!("{text}"),
        }
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("thing.toml");
        let path = path.to_str().unwrap();
        std::fs::write(path, "node_id = 3\nlisten = \"file\"\nnames = [\"a\", 5, true]\n").unwrap();
        let environment = [("THING_LISTEN", "env"), ("THING_NODE_ID", "4"), ("THING_CONFIG", path)];
        let values = read(&["--node-id", "-5"], &environment).unwrap();
        assert_eq!((values.text("node_id"), values.text("listen")), ("-5", "env"));
        assert_eq!(values.text("names"), "a,5,true");
        assert_eq!(read(&["--config", path], &[]).unwrap().text("listen"), "file");
        for (text, named) in [
            ("listne = 3\n", "there is no setting listne"),
            ("names = 1979-05-27\n", "names takes a plain value"),
            ("names = [[{}]]\n", "names takes a plain value"),
            ("=\n", "config file"),
        ] {
            std::fs::write(path, text).unwrap();
            let why = read(&["--config", path], &[]).unwrap_err().to_string();
            assert!(why.starts_with(&format!("config file {path}: ")) && why.contains(named), "{why}");
        }
        let why = read(&["--config", "/no/such/file"], &[]).unwrap_err().to_string();
        assert!(why.starts_with("config file /no/such/file: "), "{why}");
        let why = read(&["--no-such-thing"], &[]).unwrap_err().to_string();
        assert!(why.contains("--no-such-thing"), "{why}");
    }

    #[test]
    fn dev_has_defaults_of_its_own() {
        assert_eq!(read(&[], &[]).unwrap().text("listen"), "0.0.0.0:1");
        for (flags, environment) in
            [(&["--dev"][..], &[][..]), (&[], &[("THING_DEV", "1")]), (&[], &[("THING_DEV", "true")])]
        {
            let values = read(flags, environment).unwrap();
            assert_eq!((values.text("listen"), values.text("node_id")), ("127.0.0.1:1", "1"));
        }
        let program = Program { dev: None, ..PROGRAM };
        let Ok(Parsed::Run(values)) = program.read([], |_| Some("1".to_owned()).filter(|_| false)) else {
            panic!("it runs");
        };
        assert_eq!(values.text("listen"), "0.0.0.0:1");
        assert!(program.read(["--dev".to_owned()], |_| None).is_err(), "it has no such flag");
    }

    #[test]
    fn secrets_are_masked_in_what_is_logged_and_in_what_is_printed() {
        let values = read(&["--pass-word", "hunter2"], &[]).unwrap();
        assert_eq!(values.text("pass_word"), "hunter2");
        let effective = values.effective().to_vec();
        let shown: Vec<String> = effective.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(shown, ["node_id=1", "listen=0.0.0.0:1", "names=", "pass_word=********"]);
        assert!(!format!("{values:?}").contains("hunter2"), "{values:?}");
        assert!(read(&[], &[]).unwrap().effective().contains(&("pass_word".to_owned(), String::new())));
    }

    #[test]
    fn help_is_the_table() {
        let Ok(Parsed::Print(help)) = PROGRAM.read(["--help".to_owned()], |_| None) else {
            panic!("no help")
        };
        for row in [
            "Be small",
            "A TOML file with settings [env: THING_CONFIG]",
            "Which one [default: 1] [env: THING_NODE_ID]",
            "Where [default: 0.0.0.0:1; with --dev: 127.0.0.1:1] [env: THING_LISTEN]",
            "Who [env: THING_NAMES]",
            "Psst [env: THING_PASS_WORD]",
            "That is all.",
        ] {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words(&help).contains(row), "{row}: {help}");
        }
        assert!(PROGRAM.settings.iter().all(|s| help.contains(&s.flag())), "{help}");
        let Ok(Parsed::Print(version)) = PROGRAM.read(["--version".to_owned()], |_| None) else {
            panic!("no version")
        };
        assert_eq!(version, "thing 1.2.3\n");
    }
}
