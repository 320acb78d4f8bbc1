"""The two-phase protocol on small folders in the four publishers' formats:
images and texts, frozen features and fine-tuned networks"""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import overmem.metadata as metadata
import overmem.sweeps as sweeps
from overmem.data import import_torchvision
from overmem.sweeps import compute_method, compute_twins, data_of, method_run, protocol, twins_run

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'yes', 'no', 'maybe', 'not', 'cat', 'dog']
SPLITS = ['train']*40 + ['val']*16 + ['test']*16


def examples(K):
    "(split, y, a) of each row: the attribute follows the label in training, with one exception in five"
    return [(s, k % K, (k % K + (k % 5 == 0)) % 2) for k, s in enumerate(SPLITS)]


def picture(path, y, a):
    x = np.random.default_rng([y, a]).integers(0, 60, (24, 20, 3), np.uint8)
    x[:12] += np.uint8(120*y)
    x[12:] += np.uint8(120*a)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path)


def waterbirds(root):
    rows = [dict(img_id=k, img_filename=f'{k}.jpg', y=y, split=metadata.SPLITS[s], place=a, place_filename='')
            for k, (s, y, a) in enumerate(examples(2))]
    for r in rows: picture(root/'waterbird_complete95_forest2water2'/r['img_filename'], r['y'], r['place'])
    pd.DataFrame(rows).to_csv(root/'waterbird_complete95_forest2water2'/'metadata.csv', index=False)


def celeba(root):
    rows = examples(2)
    for k, (_, y, a) in enumerate(rows): picture(root/'img_align_celeba'/f'{k:06}.jpg', y, a)
    (root/'list_attr_celeba.txt').write_text(
        f'{len(rows)}\nBlond_Hair Male\n'
        + ''.join(f'{k:06}.jpg {2*y - 1} {2*a - 1}\n' for k, (_, y, a) in enumerate(rows)))
    (root/'list_eval_partition.txt').write_text(
        ''.join(f'{k:06}.jpg {metadata.SPLITS[s]}\n' for k, (s, _, _) in enumerate(rows)))


def multinli(root):
    root.mkdir()
    rows = examples(3)
    pd.DataFrame([dict(gold_label=y, sentence2_has_negation=a, split=metadata.SPLITS[s])
                  for s, y, a in rows]).to_csv(root/'metadata_random.csv')
    said = [('yes cat', f"{('no', 'yes', 'maybe')[y]} {'not' if a else ''} dog",
             ('contradiction', 'entailment', 'neutral')[y]) for _, y, a in rows]
    for name, part in dict(train=said[:40], dev_matched=said[40:56], dev_mismatched=said[56:]).items():
        pd.DataFrame(part, columns=['sentence1', 'sentence2', 'gold_label']).to_csv(
            root/f'{name}.tsv', sep='\t', index=False)


def civilcomments(root):
    root.mkdir()
    rows = [dict(id=k, comment_text=('yes cat', 'no dog')[y], split=s, toxicity=.9*y)
            | {i: float(j == k % 8) for j, i in enumerate(metadata.IDENTITIES)}
            for k, (s, y, _) in enumerate(examples(2))]
    pd.DataFrame(rows).to_csv(root/'all_data_with_identities.csv', index=False)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    "Data folder with the four benchmarks, small, and networks of the right kinds that nobody trained"
    transformers = (import_torchvision(), pytest.importorskip('transformers'))[1]
    monkeypatch.setenv('OVERMEM_DATA', str(tmp_path/'data'))
    monkeypatch.setenv('OVERMEM_HOME', str(tmp_path/'home'))
    monkeypatch.setattr(metadata, 'other_sizes', lambda name, t: '')
    for make in (waterbirds, celeba, multinli, civilcomments): make(tmp_path/'data'/make.__name__)
    torch.manual_seed(0)
    torch.save(import_torchvision().models.resnet50().state_dict(), tmp_path/'data'/metadata.WEIGHTS)
    bert = tmp_path/'data'/'bert-base-uncased'
    transformers.BertModel(transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32)).save_pretrained(bert)
    (bert/'vocab.txt').write_text('\n'.join(WORDS))


def setting(kind, **given):
    text = kind in metadata.TEXTS
    return SimpleNamespace(
        **dict(kind=kind, model=f'linear({32 if text else 2048})', steps=60, every=20, zero_head=True, combs=1, seeds=1)
        | (dict(family='text', opt='adamw', schedule='linear') if text else dict(family='images', opt='sgd')) | given)


@pytest.mark.parametrize('kind', metadata.READERS)
def test_from_the_publishers_files_to_worst_group_accuracy(folders, kind):
    s = setting(kind)
    twins = twins_run(s, 0, 0)
    found, b = compute_twins(twins), data_of(twins)
    n = [len(v.y) for v in (b.tr, b.va, b.te)]
    assert n == [40, 16, 16] and found['z_out'].shape == (40, b.K) and not b.stand_in
    assert b.n_groups == dict(waterbirds=4, celeba=4, multinli=6, civilcomments=16)[kind]
    r = compute_method(method_run(s, 'MAT', 'class', 0, 0, twins))
    assert r['te_true'].shape == (3, b.n_groups) and 0 <= np.nanmin(r['te_true']) <= 1


def test_bert_is_fine_tuned_on_tokens(folders):
    "The words tell the class, so a network that learns gets all of it right"
    s = setting('civilcomments', model='pretrained_bert()', size=8, balanced=True, schedule='constant')
    s.family, s.steps = 'own', 100
    assert compute_method(method_run(s, 'ERM', 'class', 1, 0))['te_acc'][-1] == 1


def test_celeba_finds_groups_on_features_and_learns_on_images(folders, monkeypatch):
    "Both phases have settings of their own; what untrained features tell about environments does not matter here"
    monkeypatch.setattr(sweeps, 'useless', lambda found, b: False)
    s = setting('celeba', model='cnn(4)', size=16, family='own', opt='adam', phase1=setting('celeba'))
    done = protocol(s, {'ERM': ('ERM', 'class'), 'MAT': ('MAT', 'class')}, ('true',))
    assert (done.runs['MAT', 'true', 0]['size'], done.runs['MAT', 'true', 0]['twins']['size']) == (16, 0)
    assert done.final['MAT', 'true', 0]['te_true'].shape == (3, 4)
