//! What a command answers, and the five ways to print it.
//!
//! A command builds a `Table` or a `Record` of typed cells; `table` and `wide` are for people, `json` and `yaml` for programs, `raw` for shell
//! scripts: no header, single spaces, plain numbers, `-` for nothing, blanks inside a value written as `\040`. Column keys and their
//! order in `raw` do not change.

use crate::size;
use serde_json::{Map, Value};
pub use sheepdog_proto::time::timestamp;
use std::fmt::Write;

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For people with wide screens: every column
    Wide,
    /// One JSON value; one per line where a command goes on
    Json,
    /// YAML
    Yaml,
    /// For scripts: no header, single spaces, plain numbers
    Raw,
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Nothing, or not known.
    None,
    /// Words.
    Text(String),
    /// A size.
    Bytes(u64),
    /// A count.
    Number(u64),
    /// A rate, duration, share: with a unit for people.
    Real(f64, &'static str),
    /// Milliseconds since the Unix epoch.
    Time(u64),
    /// Yes or no.
    Bool(bool),
    /// Several words.
    List(Vec<String>),
}

impl Cell {
    /// Words; none when empty.
    pub fn text(s: impl Into<String>) -> Self {
        let s = s.into();
        if s.is_empty() { Self::None } else { Self::Text(s) }
    }
    fn human(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Text(s) => s.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
            Self::Bytes(n) => size::show(*n),
            Self::Number(n) => n.to_string(),
            Self::Real(x, unit) => format!("{x:.1}{unit}"),
            Self::Time(0) => String::new(),
            Self::Time(ms) => timestamp(*ms).replace('T', " ").replace('Z', ""),
            Self::Bool(b) => if *b { "yes" } else { "no" }.into(),
            Self::List(l) => l.join(", "),
        }
    }
    fn raw(&self) -> String {
        let text = match self {
            Self::None => String::new(),
            Self::Text(s) => s.clone(),
            Self::Bytes(n) | Self::Number(n) => n.to_string(),
            Self::Real(x, _) => format!("{x:.3}"),
            Self::Time(0) => String::new(),
            Self::Time(ms) => timestamp(*ms),
            Self::Bool(b) => b.to_string(),
            Self::List(l) => l.join(","),
        };
        if text.is_empty() {
            return "-".into();
        }
        let mut out = String::new();
        for c in text.chars() {
            if c.is_whitespace() || c.is_control() || c == '\\' {
                let _ = write!(out, "\\{:03o}", c as u32);
            } else {
                out.push(c);
            }
        }
        out
    }
    fn json(&self) -> Value {
        match self {
            Self::None | Self::Time(0) => Value::Null,
            Self::Text(s) => s.clone().into(),
            Self::Bytes(n) | Self::Number(n) => (*n).into(),
            Self::Real(x, _) => serde_json::Number::from_f64(*x).map_or(Value::Null, Value::Number),
            Self::Time(ms) => timestamp(*ms).into(),
            Self::Bool(b) => (*b).into(),
            Self::List(l) => l.clone().into(),
        }
    }
    fn is_number(&self) -> bool {
        matches!(self, Self::Bytes(_) | Self::Number(_) | Self::Real(..))
    }
}

/// A column: JSON key, title, only with `-o wide`.
#[derive(Debug, Clone, Copy)]
pub struct Column(pub &'static str, pub &'static str, pub bool);

/// Rows of equal shape.
#[derive(Debug, Clone)]
pub struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<Cell>>,
    header: bool,
}

impl Table {
    /// Empty.
    pub fn new(columns: &'static [Column]) -> Self {
        Self { columns, rows: Vec::new(), header: true }
    }
    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
    /// Add a row: one cell for each column.
    pub fn row(&mut self, cells: Vec<Cell>) {
        assert_eq!(cells.len(), self.columns.len(), "a row has one cell for each column");
        self.rows.push(cells);
    }
    /// For a listing that goes on: rows only.
    pub fn without_header(self) -> Self {
        Self { header: false, ..self }
    }
    fn human(&self, wide: bool) -> String {
        let shown: Vec<usize> = (0..self.columns.len()).filter(|i| wide || !self.columns[*i].2).collect();
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if self.header {
            table.set_header(shown.iter().map(|i| self.columns[*i].1));
        }
        for row in &self.rows {
            table.add_row(shown.iter().map(|i| {
                let cell = comfy_table::Cell::new(row[*i].human());
                let side = if row[*i].is_number() {
                    comfy_table::CellAlignment::Right
                } else {
                    comfy_table::CellAlignment::Left
                };
                cell.set_alignment(side)
            }));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
        lines.join("\n") + "\n"
    }
    fn raw(&self) -> String {
        let mut out = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(self.columns).filter(|(_, c)| !c.2).map(|(cell, _)| cell.raw());
            out += &cells.collect::<Vec<_>>().join(" ");
            out.push('\n');
        }
        out
    }
    fn json(&self) -> Value {
        let object = |row: &Vec<Cell>| {
            row.iter().zip(self.columns).map(|(cell, c)| (c.0.to_owned(), cell.json())).collect::<Map<_, _>>()
        };
        Value::Array(self.rows.iter().map(|r| Value::Object(object(r))).collect())
    }
}

/// One thing: fields, and tables that belong to it.
#[derive(Debug, Clone, Default)]
pub struct Record {
    fields: Vec<(&'static str, &'static str, Cell)>,
    sections: Vec<(&'static str, &'static str, Table)>,
}

impl Record {
    /// Add a field: JSON key, title, value.
    pub fn field(mut self, key: &'static str, title: &'static str, cell: Cell) -> Self {
        self.fields.push((key, title, cell));
        self
    }
    /// Add a table that belongs to it.
    pub fn section(mut self, key: &'static str, title: &'static str, table: Table) -> Self {
        self.sections.push((key, title, table));
        self
    }
    fn human(&self, wide: bool) -> String {
        let width = self.fields.iter().map(|(_, t, _)| t.chars().count()).max().unwrap_or(0);
        let mut out = String::new();
        for (_, title, cell) in self.fields.iter().filter(|(_, _, c)| *c != Cell::None) {
            let pad = width - title.chars().count();
            let _ = writeln!(out, "{title}:{} {}", " ".repeat(pad), cell.human());
        }
        for (_, title, table) in self.sections.iter().filter(|(_, _, t)| !t.rows.is_empty()) {
            let _ = write!(out, "\n{title}\n{}", table.human(wide));
        }
        out
    }
    fn raw(&self) -> String {
        let mut out = String::new();
        for (key, _, cell) in &self.fields {
            let _ = writeln!(out, "{key} {}", cell.raw());
        }
        for (key, _, table) in &self.sections {
            for line in table.raw().lines() {
                let _ = writeln!(out, "{key} {line}");
            }
        }
        out
    }
    fn json(&self) -> Value {
        let mut object: Map<_, _> = self.fields.iter().map(|(k, _, c)| ((*k).to_owned(), c.json())).collect();
        object.extend(self.sections.iter().map(|(k, _, t)| ((*k).to_owned(), t.json())));
        Value::Object(object)
    }
}

/// A command's answer.
#[derive(Debug, Clone)]
pub enum Output {
    /// Nothing to say.
    Nothing,
    /// A listing.
    Table(Table),
    /// One thing.
    Record(Record),
    /// Something that was made or changed: programs get it, people only with `-v`.
    Done(Record),
    /// A listing of things that were made: programs get it, people only with `-v`.
    Made(Table),
    /// Text as it is, whatever the format.
    Text(String),
}

impl Output {
    /// As text, ready to print.
    pub fn render(&self, format: Format, verbose: bool) -> String {
        let value = |v: Value| match format {
            Format::Yaml => serde_yaml_ng::to_string(&v).unwrap_or_default(),
            _ => serde_json::to_string_pretty(&v).unwrap_or_default() + "\n",
        };
        match (self, format) {
            (Self::Nothing, _) => String::new(),
            (Self::Text(t), _) => t.clone(),
            (Self::Table(t) | Self::Made(t), Format::Json | Format::Yaml) => value(t.json()),
            (Self::Table(t) | Self::Made(t), Format::Raw) => t.raw(),
            (Self::Record(r) | Self::Done(r), Format::Json | Format::Yaml) => value(r.json()),
            (Self::Record(r) | Self::Done(r), Format::Raw) => r.raw(),
            (Self::Done(_) | Self::Made(_), _) if !verbose => String::new(),
            (Self::Table(t) | Self::Made(t), _) => t.human(format == Format::Wide),
            (Self::Record(r) | Self::Done(r), _) => r.human(format == Format::Wide),
        }
    }

    /// One of several answers of a command that goes on: JSON takes one line, YAML one document.
    pub fn render_next(&self, format: Format) -> String {
        let line = |v: Value| v.to_string() + "\n";
        match (self, format) {
            (Self::Table(t) | Self::Made(t), Format::Json) => line(t.json()),
            (Self::Record(r) | Self::Done(r), Format::Json) => line(r.json()),
            (Self::Table(_) | Self::Made(_) | Self::Record(_) | Self::Done(_), Format::Yaml) => {
                format!("---\n{}", self.render(format, true))
            }
            _ => self.render(format, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] =
        &[Column("name", "NAME", false), Column("size", "SIZE", false), Column("made", "MADE", true)];

    fn table() -> Output {
        let mut t = Table::new(COLUMNS);
        t.row(vec![Cell::text("a b"), Cell::Bytes(10 << 30), Cell::Time(1_795_228_528_000)]);
        t.row(vec![Cell::text("c"), Cell::None, Cell::Time(0)]);
        Output::Table(t)
    }

    #[test]
    fn five_formats() {
        let t = table();
        assert_eq!(t.render(Format::Table, false), "NAME  SIZE\na b   10.0 GiB\nc\n");
        assert_eq!(
            t.render(Format::Wide, false),
            "NAME  SIZE      MADE\na b   10.0 GiB  2026-11-21 02:35:28\nc\n"
        );
        assert_eq!(t.render(Format::Raw, false), "a\\040b 10737418240\nc -\n");
        assert_eq!(
            t.render_next(Format::Json),
            "[{\"made\":\"2026-11-21T02:35:28Z\",\"name\":\"a b\",\"size\":10737418240},{\"made\":null,\"name\":\"c\",\"size\":null}]\n"
        );
        assert_eq!(
            t.render(Format::Yaml, false),
            "- made: 2026-11-21T02:35:28Z\n  name: a b\n  size: 10737418240\n- made: null\n  name: c\n  size: null\n"
        );
    }

    #[test]
    fn records() {
        let r = Record::default().field("name", "Name", Cell::text("x")).field("none", "Nothing", Cell::None);
        let done = Output::Done(r.clone());
        assert_eq!(done.render(Format::Table, false), "");
        assert_eq!(done.render(Format::Table, true), "Name:    x\n");
        assert_eq!(Output::Record(r).render(Format::Raw, false), "name x\nnone -\n");
    }
}
