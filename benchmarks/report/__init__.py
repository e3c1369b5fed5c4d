"""Raw rows to docs/benchmarks.md, its plots and the README's headline: a file a section, nothing typed."""
