//! Label selectors: `a=b,c!=d,e in (x,y),f,!g` and `LabelSelector` objects.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::SelectorError;
use crate::object::{at, entries, items, text};
use crate::validation::names;

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `key=value`.
    Equals,
    /// `key!=value`; true when the label is absent.
    NotEquals,
    /// `key in (values)`.
    In,
    /// `key notin (values)`; true when the label is absent.
    NotIn,
    /// `key`.
    Exists,
    /// `!key`.
    DoesNotExist,
    /// `key>number`.
    GreaterThan,
    /// `key<number`.
    LessThan,
}

/// One term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what; sorted, each once.
    pub values: Vec<String>,
}

impl Requirement {
    fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        let unparsable =
            |why: String| SelectorError::new(format!("unable to parse requirement: {why}"));
        if let Some(why) = names::qualified_name(key).first() {
            return Err(unparsable(format!("<nil>: Invalid value: {key:?}: {why}")));
        }
        for (index, value) in values.iter().enumerate() {
            if matches!(operator, Operator::GreaterThan | Operator::LessThan) {
                if value.parse::<i64>().is_err() {
                    return Err(unparsable(format!(
                        "values[{index}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                    )));
                }
            } else if let Some(why) = names::label_value(value).first() {
                return Err(unparsable(format!(
                    "values[{index}][{key}]: Invalid value: {value:?}: {why}"
                )));
            }
        }
        values.sort();
        values.dedup();
        Ok(Requirement {
            key: key.to_owned(),
            operator,
            values,
        })
    }

    fn matches(&self, found: Option<&str>) -> bool {
        let listed = |label: &str| self.values.iter().any(|v| v == label);
        match self.operator {
            Operator::Equals | Operator::In => found.is_some_and(listed),
            Operator::NotEquals | Operator::NotIn => !found.is_some_and(listed),
            Operator::Exists => found.is_some(),
            Operator::DoesNotExist => found.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let number = |text: &str| text.parse::<i64>().ok();
                let (Some(label), Some(limit)) = (
                    found.and_then(number),
                    self.values.first().and_then(|v| number(v)),
                ) else {
                    return false;
                };
                if self.operator == Operator::GreaterThan {
                    label > limit
                } else {
                    label < limit
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// A parsed label selector: all requirements must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Parses the query parameter; the empty string selects everything.
    ///
    /// # Errors
    /// In upstream's words if it is malformed.
    pub fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
        let mut parser = Parser {
            tokens: lex(text),
            position: 0,
        };
        let mut requirements = parser.requirements()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements })
    }

    /// Reads a `metav1.LabelSelector`; an empty one selects everything.
    ///
    /// # Errors
    /// If an operator is unknown, or a key or value malformed.
    pub fn from_object(selector: &Value) -> Result<LabelSelector, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in entries(selector, &["matchLabels"]) {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::Equals, vec![value])?);
        }
        for expression in items(selector, &["matchExpressions"]) {
            let operator = match text(expression, &["operator"]) {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let message = format!("{other:?} is not a valid label selector operator");
                    return Err(SelectorError::new(message));
                }
            };
            let values = items(expression, &["values"])
                .iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            requirements.push(Requirement::new(
                text(expression, &["key"]),
                operator,
                values,
            )?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements })
    }

    /// The selector of a plain map, as Services have it; an empty map selects everything.
    pub fn from_map(labels: &Map<String, Value>) -> LabelSelector {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::Equals,
                values: vec![value.as_str().unwrap_or_default().to_owned()],
            })
            .collect();
        LabelSelector { requirements }
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The terms.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether an object's labels are selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.matches_map(at(object, &["metadata", "labels"]).and_then(Value::as_object))
    }

    /// Whether dynamic labels are selected.
    pub fn matches_map(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.requirements
            .iter()
            .all(|r| r.matches(labels.and_then(|l| l.get(&r.key)?.as_str())))
    }

    /// Whether typed labels are selected.
    pub fn matches_labels(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.requirements
            .iter()
            .all(|r| r.matches(labels.and_then(|l| l.get(&r.key)).map(String::as_str)))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Identifier(&'a str),
    /// One of `! = == != > < ( ) ,`.
    Symbol(&'a str),
    Unknown(&'a str),
}

fn lex(text: &str) -> Vec<Token<'_>> {
    const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", ">", "<", "(", ")", ","];
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if rest.is_empty() {
            return tokens;
        }
        if let Some(symbol) = SYMBOLS.into_iter().find(|s| rest.starts_with(s)) {
            let (head, tail) = rest.split_at(symbol.len());
            // Upstream reads runs of = and ! as one symbol: `a===b` is an error there.
            let glued = symbol != "!" && head.ends_with('=') && tail.starts_with('=');
            tokens.push(if glued {
                Token::Unknown(head)
            } else {
                Token::Symbol(head)
            });
            rest = tail;
        } else {
            let end = rest
                .find([' ', '\t', '\r', '\n', '=', '!', '(', ')', ',', '>', '<'])
                .unwrap_or(rest.len());
            let (head, tail) = rest.split_at(end);
            tokens.push(Token::Identifier(head));
            rest = tail;
        }
    }
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    position: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.position).copied()
    }

    fn next(&mut self) -> Option<Token<'a>> {
        let token = self.peek();
        self.position += 1;
        token
    }

    fn unexpected<T>(found: Option<Token<'_>>, expected: &str) -> Result<T, SelectorError> {
        let literal = match found {
            Some(Token::Identifier(s) | Token::Symbol(s) | Token::Unknown(s)) => s,
            None => "",
        };
        Err(SelectorError::new(format!(
            "unable to parse requirement: found '{literal}', expected: {expected}"
        )))
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                None => return Ok(requirements),
                Some(Token::Identifier(_) | Token::Symbol("!")) => {
                    requirements.push(self.requirement()?);
                }
                found => return Self::unexpected(found, "!, identifier, or 'end of string'"),
            }
            match self.next() {
                None => return Ok(requirements),
                Some(Token::Symbol(",")) => match self.peek() {
                    Some(Token::Identifier(_) | Token::Symbol("!")) => {}
                    found => return Self::unexpected(found, "identifier after ','"),
                },
                found => return Self::unexpected(found, "',' or 'end of string'"),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let negated = self.peek() == Some(Token::Symbol("!"));
        if negated {
            self.position += 1;
        }
        let key = match self.next() {
            Some(Token::Identifier(key)) => key,
            found => return Self::unexpected(found, "identifier"),
        };
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        let operator = match self.peek() {
            None | Some(Token::Symbol(",")) => {
                return Requirement::new(key, Operator::Exists, Vec::new());
            }
            Some(Token::Symbol("=" | "==")) => Operator::Equals,
            Some(Token::Symbol("!=")) => Operator::NotEquals,
            Some(Token::Symbol(">")) => Operator::GreaterThan,
            Some(Token::Symbol("<")) => Operator::LessThan,
            Some(Token::Identifier("in")) => Operator::In,
            Some(Token::Identifier("notin")) => Operator::NotIn,
            found => return Self::unexpected(found, "in, notin, =, ==, !=, gt, lt"),
        };
        self.position += 1;
        let values = match operator {
            Operator::In | Operator::NotIn => self.set()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key, operator, values)
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            None | Some(Token::Symbol(",")) => Ok(String::new()),
            Some(Token::Identifier(value)) => {
                self.position += 1;
                Ok(value.to_owned())
            }
            found => Self::unexpected(found, "identifier"),
        }
    }

    /// `(x,y)`; as upstream has it, `()` and `(x,)` hold the empty value.
    fn set(&mut self) -> Result<Vec<String>, SelectorError> {
        match self.next() {
            Some(Token::Symbol("(")) => {}
            found => return Self::unexpected(found, "'('"),
        }
        let mut values = Vec::new();
        loop {
            let value = match self.peek() {
                Some(Token::Identifier(value)) => {
                    self.position += 1;
                    value
                }
                Some(Token::Symbol("," | ")")) => "",
                found => return Self::unexpected(found, "',', ')' or identifier"),
            };
            values.push(value.to_owned());
            match self.next() {
                Some(Token::Symbol(",")) => {}
                Some(Token::Symbol(")")) => return Ok(values),
                found => return Self::unexpected(found, "',' or ')'"),
            }
        }
    }
}
