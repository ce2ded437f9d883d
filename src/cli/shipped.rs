//! The manual page and the shell completions under `packaging/`, generated from the definition of
//! the command line. They are files rather than commands, so that packages contain them and the
//! program contains no generator.

use std::path::Path;

use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use super::*;

const MANUAL: &str = "packaging/opsramp-exporter.1";

/// The title has no date, because the date would change with every test run.
const TITLE: &str = concat!(
    ".TH OPSRAMP-EXPORTER 1 \"\" \"opsramp-exporter ",
    env!("CARGO_PKG_VERSION"),
    "\" \"User Commands\"\n"
);

/// The parts of the page that are not generated from flags.
const REST: &str = r#".SH "EXIT STATUS"
.TP
\fB0\fR
Done.
.TP
\fB1\fR
Failed at run time.
.TP
\fB2\fR
Wrong usage or configuration.
.SH SIGNALS
.TP
\fBTERM\fR, \fBINT\fR
Deliver what is journalled, and stop; the second one stops at once.
.TP
\fBHUP\fR
Load the configuration again, and reopen log files.
.SH FILES
.TP
\fI/etc/opsramp\-exporter/config.yml\fR
The configuration that the systemd unit names.
.TP
\fI/etc/opsramp\-exporter/client\-secret\fR
The secret that systemd hands to the service. Nobody but root may read it.
.TP
\fI/var/lib/opsramp\-exporter/state.db\fR
Which alerts are known, and the lines that are still to be delivered.
Without it, every open alert is logged again.
.TP
\fI/var/log/opsramp\-exporter/alerts.jsonl\fR
Alert lines, where the packaged configuration puts them.
.SH EXAMPLES
.nf
opsramp\-exporter demo
opsramp\-exporter \-\-config.file=config.yml check
opsramp\-exporter \-\-config.file=config.yml search \-\-count
opsramp\-exporter config \-\-schema
.fi
.SH "SEE ALSO"
\fBjournalctl\fR(1), \fBpromtool\fR(1), \fBsystemctl\fR(1)
"#;

/// The first line of the function in fish's completion that finds the command.
const FISH_COMMAND: &str = "function __fish_opsramp_exporter_needs_command\n";

/// The body of this function: the command is the first word that is neither a flag nor a flag's
/// value. The generated body hands the names of flags to fish's `argparse`, which silently refuses
/// names with a dot, so that nothing was ever completed (`clap_complete` 4.6.11).
const FISH_COMMAND_BODY: &str = r"    # Figure out if the current invocation already has a command.
    set -l words (commandline -opc)
    set -e words[1]
    set -l with_value (__fish_opsramp_exporter_global_optspecs | string replace -rf '^(?:./)?(.*)=$' '$1')
    set -l is_value 0
    for word in $words
        if test $is_value = 1
            set is_value 0
        else if string match -q -- '--*' $word
            if contains -- (string sub -s 3 -- $word) $with_value
                set is_value 1
            end
        else if not string match -q -- '-*' $word
            # Also print the command, so this can be used to figure out what it is.
            echo $word
            return 1
        end
    end
    return 0
";

/// Fails if a file is not current; writes it with `UPDATE_SHIPPED=1`.
pub(crate) fn assert_current(path: &str, current: &[u8]) {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_SHIPPED").is_some() {
        std::fs::create_dir_all(full.parent().unwrap()).unwrap();
        std::fs::write(&full, current).unwrap();
    }
    assert!(
        std::fs::read(&full).is_ok_and(|shipped| shipped == current),
        "{path} is not current; run `UPDATE_SHIPPED=1 cargo test --lib shipped`"
    );
}

fn manual() -> Vec<u8> {
    let definition = Cli::definition();
    let commands = commands(&definition);
    let page = Man::new(definition.override_usage("opsramp-exporter [OPTIONS] [COMMAND]"));
    let mut text = TITLE.as_bytes().to_vec();
    page.render_name_section(&mut text).unwrap();
    page.render_synopsis_section(&mut text).unwrap();
    page.render_description_section(&mut text).unwrap();
    text.extend(notes().as_bytes());
    commands.to_writer(&mut text).unwrap();
    page.render_options_section(&mut text).unwrap();
    text.extend(REST.as_bytes());
    text
}

/// Returns the last words of the help up to the exit status, which has a section of its own.
fn notes() -> String {
    let definition = Cli::definition();
    let notes = definition
        .get_after_help()
        .expect("there is some")
        .to_string();
    let notes = notes.split("\n\n").next().unwrap_or_default().to_owned();
    let mut roff = Roff::new();
    roff.control("PP", []);
    roff.text([roman(notes.replace('\n', " "))]);
    roff.to_roff()
}

/// Lists each command with what it does, and the flags that only this command has.
fn commands(definition: &clap::Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for command in definition.get_subcommands() {
        roff.control("TP", []);
        roff.text([bold(command.get_name())]);
        let about = command
            .get_about()
            .expect("every command says what it does");
        roff.text([roman(format!("{about}."))]);
        let own = command
            .get_arguments()
            .filter(|argument| !argument.is_global_set() && argument.get_long() != Some("help"));
        for argument in own {
            roff.control("RS", []);
            roff.control("TP", []);
            roff.text([bold(argument.to_string())]);
            let help = argument.get_help().expect("every flag has help");
            let values = argument.get_possible_values();
            let values: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
            let choice = if values.is_empty() || !argument.get_action().takes_values() {
                String::new()
            } else {
                format!(" [possible values: {}]", values.join(", "))
            };
            roff.text([roman(format!("{help}{choice}."))]);
            roff.control("RE", []);
        }
    }
    roff
}

#[test]
fn the_manual_page_is_current() {
    assert_current(MANUAL, &manual());
}

#[test]
fn the_completions_are_current() {
    for (shell, file) in [
        (Shell::Bash, "opsramp-exporter.bash"),
        (Shell::Zsh, "_opsramp-exporter"),
        (Shell::Fish, "opsramp-exporter.fish"),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Cli::definition(), "opsramp-exporter", &mut text);
        let text = String::from_utf8(text).unwrap();
        // The generated bash completion uses two different names for a program with a dash in its
        // name, so that it would complete no command's flags (clap_complete 4.6.11).
        let text = text.replace("opsramp__subcmd__exporter", "opsramp__exporter");
        let text = match shell {
            Shell::Fish => with_our_way_to_find_the_command(&text),
            _ => text,
        };
        assert_current(&format!("packaging/completions/{file}"), text.as_bytes());
    }
}

fn with_our_way_to_find_the_command(fish: &str) -> String {
    let (before, rest) = fish.split_once(FISH_COMMAND).unwrap();
    let (body, after) = rest.split_once("\nend\n").unwrap();
    assert!(body.contains("argparse"), "it is another one now: {body}");
    format!("{before}{FISH_COMMAND}{FISH_COMMAND_BODY}end\n{after}")
}
