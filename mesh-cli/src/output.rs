//! How results are printed: tables for people, JSON and YAML for programs.

use std::io::{IsTerminal as _, Write as _};

use clap::{Args, ValueEnum};
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Output {
    /// How the result is printed.
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// A format of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON value.
    Json,
    /// One YAML document.
    Yaml,
}

impl Output {
    /// Prints a value for programs; `false` when people are to read it, and nothing was printed.
    ///
    /// # Errors
    /// When the value cannot be written out.
    pub fn structured(self, value: &impl Serialize) -> anyhow::Result<bool> {
        let text = match self.format {
            Format::Table => return Ok(false),
            Format::Json => serde_json::to_string_pretty(value)? + "\n",
            // Through JSON, whose order of fields stands.
            Format::Yaml => serde_saphyr::to_string(&serde_json::to_value(value)?)?,
        };
        print(&text)?;
        Ok(true)
    }
}

/// Writes to standard output. A reader that has seen enough (`meshctl … | head`) is no error.
///
/// # Errors
/// When standard output cannot be written to.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// A table without lines, in columns as wide as their content.
#[must_use]
pub fn table<H: ToString>(header: impl IntoIterator<Item = H>) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.into_iter().map(|title| title.to_string()).collect::<Vec<_>>());
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table
}

/// A table as text, without blanks at the ends of lines.
#[must_use]
pub fn rendered(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// An age as people say it: `42s`, `3m`, `5h`, `12d`.
#[must_use]
pub fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Whether standard output is a terminal that takes colours.
#[must_use]
pub fn is_colourful() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let ages: Vec<_> = [0, 119, 120, 7_200, 172_800].map(age).into();
        assert_eq!(ages, ["0s", "119s", "2m", "2h", "2d"]);
    }

    #[test]
    fn tables_are_aligned_text() {
        let mut table = table(["NAME", "STATE"]);
        table.add_row(["reviews-v1.default", "SYNCED"]);
        assert_eq!(
            rendered(&table),
            "NAME                 STATE\nreviews-v1.default   SYNCED\n"
        );
    }
}
