"""Methods of language modelling trained, sampled and measured on equal terms: `flm compare`."""
