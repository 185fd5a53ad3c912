//! The report before it is written down. Texts have the marks of Markdown that [`super::html`] knows, too: `code`, **bold**
//! and [links](to).

use super::chart::Chart;

#[derive(Debug)]
pub(super) struct Document {
    pub(super) title: &'static str,
    pub(super) intro: Vec<Block>,
    pub(super) sections: Vec<Section>,
}

#[derive(Debug)]
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) blocks: Vec<Block>,
}

#[derive(Debug)]
pub(super) enum Block {
    /// Of what a part of a section is.
    Heading(String),
    Text(String),
    List(Vec<String>),
    Table(Table),
    Chart(Chart),
    /// What is shown to those who ask.
    More(String, Vec<Block>),
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
    /// All but the first column are numbers.
    pub(super) numbers: bool,
}

impl Table {
    /// A table of numbers.
    pub(super) fn of_numbers(head: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            head: head.into_iter().map(Into::into).collect(),
            numbers: true,
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl Document {
    /// Its charts, in order.
    pub(super) fn charts(&self) -> impl Iterator<Item = &Chart> {
        let blocks = self.sections.iter().flat_map(|section| &section.blocks);
        blocks
            .flat_map(Block::each)
            .filter_map(|block| match block {
                Block::Chart(chart) => Some(chart),
                _ => None,
            })
    }
}

impl Block {
    /// It, or what is within it.
    fn each(&self) -> &[Self] {
        match self {
            Self::More(_, blocks) => blocks,
            block => std::slice::from_ref(block),
        }
    }
}

impl Section {
    /// A section, unless it has nothing.
    pub(super) fn new(title: &'static str, blocks: Vec<Block>) -> Option<Self> {
        (!blocks.is_empty()).then_some(Self { title, blocks })
    }

    /// What links to it say: as GitHub makes it of the title.
    pub(super) fn anchor(&self) -> String {
        anchor(self.title)
    }
}

fn anchor(title: &str) -> String {
    let kept = title.to_lowercase().replace(' ', "-");
    kept.chars()
        .filter(|character| character.is_alphanumeric() || *character == '-')
        .collect()
}
