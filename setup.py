"Package metadata, read from settings.ini: edit it there."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(here/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
lib = cfg['lib_path']
statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']

# Experiment notebooks and the papers' numbers are data of the package, kept where people look for them.
data_dirs = {f'{lib}.experiments': ('nbs/experiments', '*.ipynb'), f'{lib}.reference': ('data/reference', '*.csv')}

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    author=cfg['author'], license='Apache-2.0', keywords=cfg['keywords'].split(),
    classifiers=['Development Status :: ' + statuses[int(cfg['status']) - 1], 'Intended Audience :: ' + cfg['audience'],
                 'Natural Language :: ' + cfg['language'], 'Programming Language :: Python :: 3'],
    python_requires='>=' + cfg['min_python'],
    packages=[lib, *data_dirs], package_dir={k: d for k, (d, _) in data_dirs.items()},
    package_data={k: [glob] for k, (_, glob) in data_dirs.items()},
    install_requires=cfg['requirements'].split(),
    extras_require={k: cfg[f'{k}_requirements'].split() for k in ('lab', 'text', 'slurm', 'tensorboard', 'dev')},
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']},
    zip_safe=False)
